"""Code that runs inside the sandbox's workers: started with `python -I`, standard library only, nothing of Tenfold."""
