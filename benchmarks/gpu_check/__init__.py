"""`python -m benchmarks.gpu_check`: what this project claims of a GPU, checked and measured on the one that is here."""
