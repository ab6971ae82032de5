"""The table of commands: from it come completion, help, colours, and what is a command at all."""

from __future__ import annotations

from llambo.dish import asking, cluster_commands, file_commands, jobs
from llambo.dish.command import Table

TABLE = Table(
    (
        *cluster_commands.LOOKS,
        *asking.COMMANDS,
        *cluster_commands.CONTROL,
        *file_commands.COMMANDS,
        *jobs.COMMANDS,
        *cluster_commands.LEAVING,
    )
)
