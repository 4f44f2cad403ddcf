"""Help for the tests of applications and of plugins."""
