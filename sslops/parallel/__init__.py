"""What ranks need to compare their rows: who they are, that they agree, and how blocks travel."""

from sslops.parallel.agree import Same, agree, checked_by_all
from sslops.parallel.team import Gather, Group, Ring, Team, eager, team_of
from sslops.parallel.visit import visit

__all__ = [
    "Gather",
    "Group",
    "Ring",
    "Same",
    "Team",
    "agree",
    "checked_by_all",
    "eager",
    "team_of",
    "visit",
]
