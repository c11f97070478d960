"""A command that has subcommands beside it: `fastcnn bench MODEL` times, `fastcnn bench compare A B` does not."""

from __future__ import annotations

from typing import Any, ClassVar

from typer.core import TyperGroup


class DefaultCommandGroup(TyperGroup):
    """A group whose arguments go to the command named `default` unless they start with the name of another one.

    The default command then takes the group's own place: its usage line, its help and its errors show the group's name.
    """

    default: ClassVar[str] = "run"

    def make_context(self, info_name: str | None, args: list[str], parent: Any = None, **extra: Any) -> Any:
        """As in typer, for the subcommand named first, or else for the default one under the group's name."""
        completing = extra.get("resilient_parsing", False)
        if (args and args[0] in self.commands) or (completing and not args):
            return super().make_context(info_name, args, parent, **extra)
        return self.commands[self.default].make_context(info_name, args, parent, **extra)

    def shell_complete(self, ctx: Any, incomplete: str) -> list[Any]:
        """What may stand first: a subcommand, or an option or argument of the default command."""
        command = self.commands[self.default]
        names = [] if incomplete.startswith("-") else super().shell_complete(ctx, incomplete)
        with command.make_context(ctx.info_name, [], ctx.parent, resilient_parsing=True) as inner:
            found = command.shell_complete(inner, incomplete)
            for parameter in command.params:
                if parameter.param_type_name == "argument" and not incomplete.startswith("-"):
                    found += parameter.shell_complete(inner, incomplete)
                    break
        return names + found
