"""One self-contained HTML page about tables, records and runs."""
