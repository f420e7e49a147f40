"""`terminal-status migrate`: brings the database's schema up to date."""

import asyncio

from app.cli.configuration import read_settings_without_sip
from app.cli.console import fail, out
from app.cli.options import ConfigOption, JsonOption
from app.cli.tables import print_json


def migrate(config: ConfigOption = None, as_json: JsonOption = False) -> None:
    """Bring the database's schema up to date, as serve does when it starts.

    Safe to run more than once, and while another process migrates.
    """
    from app.logs import configure_logging
    from app.store import DatabaseUnavailable
    from app.store import migrate as migrate_database

    configure_logging("warning", "auto")
    settings = read_settings_without_sip(config)
    try:
        migrated = asyncio.run(migrate_database(settings.database_url))
    except DatabaseUnavailable as error:
        fail(f"The database cannot be opened: {error}. See TS_DATABASE_URL.")
    if as_json:
        print_json({"before": migrated.before, "now": migrated.now}, indent=None)
    elif migrated.before == migrated.now:
        out.print(f"The database is up to date: {migrated.now}.")
    else:
        out.print(f"The database is now at {migrated.now}; it was {migrated.before or 'new'}.")
