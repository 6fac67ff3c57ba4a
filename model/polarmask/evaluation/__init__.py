"""How good a model, its data and its engines are."""
