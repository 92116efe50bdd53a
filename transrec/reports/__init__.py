"""Reports on datasets and finished runs: tables, significance tests, plots, HTML pages and model cards."""
