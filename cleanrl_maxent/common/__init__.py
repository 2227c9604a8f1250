"""What every algorithm uses unchanged and no paper describes: no gradient, network or hyperparameter.

Rooms, each of which imports only from those before it:

    errors      what ends a program early, and its exit status
    ranges      types that state the range of an argument
    signals     signals that ask a program to stop
    cli         the arguments that every run has; one epilogue for every script
    files       arrays under names; files written whole or not at all
    devices     the device and its memory
    data        transitions, their replay, running statistics
    schedule    every k-th update
    policy      a trained policy on disk
    env         the environments of every seed, what is refused and why, restoring one exactly
    evaluation  whole episodes of the trained policy
    run         a run's folder, record, checkpoints and screen
"""
