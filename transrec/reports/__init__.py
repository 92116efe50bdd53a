"""What is made of results: tables, and studies that fill them."""
