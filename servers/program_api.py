"""The REST API for programs of the runner.

Its paths are /api/programs, /api/servers/{slug}/program and /api/servers/{slug}/program/stderr.
"""

from __future__ import annotations

from typing import Any

from rest_framework import serializers
from rest_framework.request import Request
from rest_framework.response import Response

from capabilities import Capability
from servers import programs
from servers.views import program_or_404
from ui.operations import operation
from ui.rest import Resource, UtcDateTimeField


class LastExitSerializer(serializers.Serializer[programs.LastExit]):
    """The most recent exit of one of the program's processes."""

    at = UtcDateTimeField(allow_null=True, help_text="When the process ended; null if not known.")
    code = serializers.IntegerField(allow_null=True, help_text="Exit code; null if a signal ended the process.")
    signal = serializers.CharField(help_text="Signal that ended the process; empty if none did.")
    reason = serializers.CharField(help_text="Reason in words.")


class ProgramSerializer(serializers.Serializer[Any]):
    """A program of the runner."""

    name = serializers.CharField(help_text="Name in runner.yaml.")
    title = serializers.CharField(help_text="Title in runner.yaml.")
    description = serializers.CharField(help_text="Description in runner.yaml.")
    kind = serializers.CharField(help_text="`program`, or `openapi` for an API description.")
    mode = serializers.CharField(help_text="`shared` for one process, or `session` for one in each session.")
    url = serializers.CharField(help_text="Address of its MCP endpoint. Use it to register a server.")
    state = serializers.CharField(help_text="`idle`, `starting`, `running` or `failing`; empty if not known.")
    error = serializers.CharField(help_text="Why it is failing; otherwise empty.")
    running = serializers.IntegerField(help_text="Number of its processes.")
    restarts = serializers.IntegerField(help_text="Restarts since the runner started.")
    started_at = UtcDateTimeField(allow_null=True, help_text="When a process last started; null if none did.")
    last_exit = LastExitSerializer(allow_null=True, help_text="The most recent exit of a process; null if none.")
    memory_bytes = serializers.IntegerField(allow_null=True, help_text="Memory of its processes; null if not known.")


class ListingSerializer(serializers.Serializer[Any]):
    """The programs of the runner, or why they are not known."""

    problem = serializers.CharField(allow_null=True, help_text="Why the runner did not answer; null if it did.")
    version = serializers.CharField(help_text="Version of the runner; empty if the runner did not answer.")
    isolation = serializers.CharField(
        help_text="`uid` if each program has a UID of its own, otherwise `none`; empty if the runner did not answer."
    )
    programs = ProgramSerializer(many=True, help_text="Its programs.")


class StateSerializer(serializers.Serializer[Any]):
    """A program, or why its state is not known."""

    problem = serializers.CharField(allow_null=True, help_text="Why its state is not known; null if it is known.")
    program = ProgramSerializer(allow_null=True, help_text="The program; null if its state is not known.")


class ErrorLineSerializer(serializers.Serializer[Any]):
    """A line of standard error."""

    at = UtcDateTimeField(allow_null=True, help_text="When the line was written; null if not known.")
    pid = serializers.IntegerField(allow_null=True, help_text="ID of the process that wrote it; null if not known.")
    text = serializers.CharField(help_text="The line.")


class StandardErrorSerializer(serializers.Serializer[Any]):
    """The last lines of standard error, or why they are not known."""

    problem = serializers.CharField(allow_null=True, help_text="Why the runner did not answer; null if it did.")
    lines = ErrorLineSerializer(many=True, help_text="The last 200 lines, oldest first.")


class ProgramResource(Resource):
    """Programs of the runner. The runner starts only the programs listed in its file; no request starts another one."""

    serializer_class = ProgramSerializer
    lookup_value_converter = "slug"

    @operation(needs=Capability.SERVERS_READ, answer=ListingSerializer)
    def listing(self, request: Request) -> Response:
        """List the programs of the runner.

        If the runner does not answer, the status is still 200, and `problem` has the reason.
        """
        try:
            found = programs.list_programs()
        except programs.RunnerUnavailable as fault:
            return Response({"problem": str(fault), "version": "", "isolation": "", "programs": []})
        rows = ProgramSerializer(found.programs, many=True).data
        return Response({"problem": None, "version": found.version, "isolation": found.isolation, "programs": rows})

    @operation(needs=Capability.SERVERS_READ, answer=StateSerializer)
    def program(self, request: Request, slug: str) -> Response:
        """Get the program of a server.

        404 if the server is not a program of the runner. If the runner does not answer, the status is 200, and
        `problem` has the reason.
        """
        name = program_or_404(slug)[1]
        try:
            program = programs.list_programs().find(name)
        except programs.RunnerUnavailable as fault:
            return Response({"problem": str(fault), "program": None})
        return Response({"problem": None, "program": ProgramSerializer(program).data})

    @operation(needs=programs.READS_STANDARD_ERROR, answer=StandardErrorSerializer)
    def standard_error(self, request: Request, slug: str) -> Response:
        """Get the last lines that the program of a server wrote to standard error.

        404 if the server is not a program of the runner. If the runner does not answer, the status is 200, and
        `problem` has the reason.
        """
        name = program_or_404(slug)[1]
        try:
            lines = programs.standard_error(name)
        except programs.RunnerUnavailable as fault:
            return Response({"problem": str(fault), "lines": []})
        return Response({"problem": None, "lines": ErrorLineSerializer(lines, many=True).data})
