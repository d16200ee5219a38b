"""Small helpers that every room may use: files, pages, tables, progress, optional libraries."""
