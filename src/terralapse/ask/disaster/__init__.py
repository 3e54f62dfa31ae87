"""The nine tasks of DisasterM3 over any answerer: prompts, answerers, judges, the run."""
