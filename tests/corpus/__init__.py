"""Bad inputs of every command, as tables; `tests.corpus.runner` tries them."""
