"""`make docs`: a site from executed notebooks, results and docstrings, built and checked without a network."""
