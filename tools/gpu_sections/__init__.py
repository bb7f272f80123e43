"""The sections of gpu_report.py: each a module with `rows(bench)`, which yields names of rows and what measures them."""
