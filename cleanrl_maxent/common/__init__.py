"""What every algorithm uses unchanged and no paper describes: no gradient, network or hyperparameter.

Modules and packages, each of which imports only from those before it:

    errors      what ends a program early, and its exit status
    ranges      types that state the range of an argument
    output      what is printed, which never stops a program
    signals     signals that ask a program to stop
    activity    what a program is doing, such as compiling
    usage       what --help prints for an algorithm
    config      config.json of a run, which says what it is
    cli         the arguments that every run has; one epilogue for every script
    files       named arrays; files written atomically
    container   the memory and the cores that a container may use
    devices     the device and its memory
    data        transitions, their replay, running statistics
    rollouts    steps of several environments per seed, and their memory
    schedule    every k-th update
    env         the environments of every seed: checked, stepped, restored exactly
    film        episodes as GIF, MP4 or in a window
    policy      a trained policy: saved, loaded
    evaluation  whole episodes of the trained policy
    run         a run's folder, record, checkpoints and status line
"""
