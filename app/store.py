"""The database. For now only whether it opens; tables come with standing subscriptions.

Deliberately absent: any table, and any use while the gateway serves.
"""

from sqlalchemy import text
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import create_async_engine


class DatabaseUnavailable(Exception):
    """The database does not open; the message says why."""


async def check_database(url: str) -> str:
    """Opens the database at `url` and asks it for its version, which is returned. Raises DatabaseUnavailable."""
    try:
        engine = create_async_engine(url)
    except (SQLAlchemyError, ImportError) as error:
        raise DatabaseUnavailable(str(error)) from error
    question = "select sqlite_version()" if engine.dialect.name == "sqlite" else "show server_version"
    try:
        async with engine.connect() as connection:
            return f"{engine.dialect.name} {(await connection.execute(text(question))).scalar_one()}"
    except (SQLAlchemyError, OSError) as error:
        raise DatabaseUnavailable(str(getattr(error, "orig", None) or error)) from error
    finally:
        await engine.dispose()
