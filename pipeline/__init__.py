"""kiloseg's library and command line: settings, data, training, evaluation, tracking, reporting."""
