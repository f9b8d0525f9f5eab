"""Keep the project's own MLflow store with the project when that is copied, moved or mounted elsewhere.

MLflow stores where the files of each experiment and run lie as absolute addresses. They are those of the
place where the project was; a copy would write into the original.
"""

from __future__ import annotations

from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import url2pathname

import sqlalchemy

_COLUMNS = {
    "experiments": ("artifact_location",),
    "runs": ("artifact_uri",),
    "logged_models": ("artifact_location",),
    "model_versions": ("source", "storage_location"),
    "trace_tags": ("value",),
}


def relocate_artifacts(uri: str, artifacts: Path) -> None:
    """Rewrite the addresses of a store whose experiments lie in an `mlartifacts` of another place.

    Args:
        uri: of the SQLite store, which exists.
        artifacts: the folder `mlartifacts` beside it.
    """
    engine = sqlalchemy.create_engine(uri)
    try:
        with engine.connect() as connection:
            query = sqlalchemy.text("select distinct artifact_location from experiments")
            places = [str(row[0]) for row in connection.execute(query)]
        for old in {home for place in places if (home := _other_home(place, artifacts)) is not None}:
            _rewrite(engine, old, artifacts.parent)
    finally:
        engine.dispose()


def _other_home(place: str, artifacts: Path) -> Path | None:
    """Return the project that an experiment's address belongs to, if it is not the one of `artifacts`."""
    path = Path(url2pathname(urlsplit(place).path) if place.startswith("file:") else place)
    if path.name != artifacts.name or not path.is_absolute() or path == artifacts:
        return None
    same = path.parent.exists() and artifacts.parent.exists() and path.parent.samefile(artifacts.parent)
    return None if same else path.parent  # the same folder under two names, such as a mount, stays


def _rewrite(engine: sqlalchemy.Engine, old: Path, new: Path) -> None:
    present = sqlalchemy.inspect(engine)
    with engine.begin() as connection:
        for table, columns in _COLUMNS.items():
            if not present.has_table(table):
                continue
            for column in columns:
                for before, after in ((f"{old.as_uri()}/", f"{new.as_uri()}/"), (f"{old}/", f"{new}/")):
                    statement = sqlalchemy.text(
                        f"update {table} set {column} = :after || substr({column}, :rest) "
                        f"where substr({column}, 1, :length) = :before"
                    )
                    values = {
                        "before": before,
                        "after": after,
                        "length": len(before),
                        "rest": len(before) + 1,
                    }
                    connection.execute(statement, values)
