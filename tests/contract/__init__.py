"""What every algorithm must pass, written once, for whichever files `cleanrl_maxent.algorithms()` finds."""
