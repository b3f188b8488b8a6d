"""Many runs, or a look at one: ablations, audits of shortcuts, plans, replays of failed steps."""
