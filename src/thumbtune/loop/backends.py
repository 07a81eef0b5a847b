"""Where the curation's expression runs: DuckDB in this process, or Spark. Parquet in, Parquet out."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from thumbtune.errors import ConfigError

if TYPE_CHECKING:
    from ibis import Table

Backend = Literal["duckdb", "spark"]


class Database:
    """An Ibis backend that reads and writes Parquet."""

    def __init__(self, connection: Any) -> None:
        self.connection = connection

    def read(self, path: Path) -> Table:
        """A table over a file, or over a folder of part files."""
        table: Table = self.connection.read_parquet(str(path))
        return table

    def write(self, rows: Table, path: Path) -> Table:
        """Carry an expression out, into a file (DuckDB) or a folder of part files in order (Spark)."""
        try:
            self.connection.to_parquet(rows, str(path))
        except Exception as error:
            if "Out of Memory" in str(error):
                said = str(error).splitlines()[0]
                raise ConfigError(f"the memory limit is too small: give more ({said})") from error
            raise
        return self.read(path)


@contextmanager
def connect(backend: Backend, work: Path, memory_limit: str) -> Iterator[Database]:
    """A backend while the block runs; what does not fit its memory goes below `work`. Raises `ConfigError`."""
    opened = _open_duckdb(work, memory_limit) if backend == "duckdb" else _open_spark(work, memory_limit)
    try:
        yield Database(opened)
    finally:
        opened.disconnect()


def _open_duckdb(work: Path, memory_limit: str) -> Any:
    try:
        import duckdb
        import ibis
    except ImportError as error:
        raise ConfigError("snapshots need Ibis and DuckDB: pip install 'thumbtune[loop]'") from error
    try:
        return ibis.duckdb.connect(memory_limit=memory_limit, temp_directory=str(work / "spill"))
    except duckdb.Error as error:
        raise ConfigError(f"memory limit '{memory_limit}': {error}. Say 2GB, for example") from error


def _open_spark(work: Path, memory_limit: str) -> Any:
    """Spark on this machine, unless SPARK_REMOTE or a spark-defaults.conf says where else."""
    try:
        import ibis
        from pyspark.sql import SparkSession
    except ImportError as error:
        raise ConfigError("the backend spark needs PySpark: pip install 'thumbtune[loop,spark]'") from error
    settings = {
        "spark.driver.memory": memory_limit.upper().removesuffix("B").replace("I", "").lower(),
        "spark.local.dir": str(work / "spill"),
        "spark.sql.warehouse.dir": str(work / "warehouse"),
        "spark.sql.session.timeZone": "UTC",
        "spark.ui.enabled": "false",
        "spark.ui.showConsoleProgress": "false",
    }
    builder = SparkSession.builder.appName("thumbtune")
    if not os.environ.get("SPARK_REMOTE"):
        builder = builder.master(os.environ.get("SPARK_MASTER", "local[*]"))
    for name, value in settings.items():
        builder = builder.config(name, value)
    return ibis.pyspark.connect(builder.getOrCreate())
