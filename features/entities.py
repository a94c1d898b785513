"""What features are about: an airline, the two airports of a flight, the plane that flies it."""

from __future__ import annotations

from feast import Entity, ValueType

carrier = Entity(name="carrier", join_keys=["carrier"], value_type=ValueType.STRING)
origin = Entity(name="origin", join_keys=["origin"], value_type=ValueType.STRING)
dest = Entity(name="dest", join_keys=["dest"], value_type=ValueType.STRING)
plane = Entity(name="plane", join_keys=["tailnum"], value_type=ValueType.STRING)
