"""A migration operation for databases that were created with an older, shorter initial migration."""

from typing import Any

from django.db.migrations.operations.base import Operation, OperationCategory


class CreateMissing(Operation):
    """Create the tables of these models, or the missing columns of tables that exist. Reversing does nothing."""

    category = OperationCategory.ADDITION

    def __init__(self, *models: str) -> None:
        self.models = models

    def state_forwards(self, app_label: str, state: Any) -> None:
        """Change nothing, because the initial migration already has the models."""

    def database_forwards(self, app_label: str, schema_editor: Any, from_state: Any, to_state: Any) -> None:
        with schema_editor.connection.cursor() as cursor:
            tables = schema_editor.connection.introspection.table_names(cursor)
            for name in self.models:
                model = from_state.apps.get_model(app_label, name)
                table = model._meta.db_table
                if table not in tables:
                    schema_editor.create_model(model)
                    continue
                described = schema_editor.connection.introspection.get_table_description(cursor, table)
                columns = {column.name for column in described}
                for field in model._meta.local_concrete_fields:
                    if field.column not in columns:
                        schema_editor.add_field(model, field)

    def database_backwards(self, app_label: str, schema_editor: Any, from_state: Any, to_state: Any) -> None:
        """Keep the tables and columns, because in newer databases the initial migration has created them."""

    def describe(self) -> str:
        return f"Create what is missing of {', '.join(self.models)}"
