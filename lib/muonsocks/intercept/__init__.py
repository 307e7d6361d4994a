"""System calls of programs that know nothing of us, answered in their place (seccomp(2))."""
