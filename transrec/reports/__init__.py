"""What is made of results: tables."""
