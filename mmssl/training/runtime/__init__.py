"""Where a run runs: device, processes, parallel modes, run lock, signals, console."""
