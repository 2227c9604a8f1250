"""What every algorithm uses unchanged and no paper describes: no gradient, network or hyperparameter."""
