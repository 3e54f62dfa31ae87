"""Many units of work on many machines: plans, units, the journal, the scheduler and what it runs on."""
