"""How many examples hypothesis makes of what is dear: few, for each time they are others. Many, if one asks for them:

pytest --hypothesis-profile=many
"""

from typing import Any

from hypothesis import settings


def examples(few: int, many: int, **more: Any) -> settings:
    """Settings of a test, on a machine that may be busy."""
    asked = settings.get_current_profile_name() == "many"
    return settings(max_examples=many if asked else few, deadline=None, **more)
