# Copyright 2026 The feat_ros authors
# SPDX-License-Identifier: Apache-2.0
"""What a pixel of the town can be, and how long such a thing stays as it is."""

from __future__ import annotations

from feat_ros.semantics import LabelTable, StabilityGroup

_GROUPS = {
    StabilityGroup.VOLATILE: ('sky',),
    StabilityGroup.LONG_TERM: (
        *('road', 'pavement', 'building', 'window', 'balcony', 'shop sign', 'pole'),
        *('street lamp', 'traffic light', 'traffic sign', 'fence'),
    ),
    StabilityGroup.SHORT_TERM: ('bench', 'tree'),
    StabilityGroup.DYNAMIC: ('car', 'cyclist', 'person'),
}
_CLASSES = [(name, group) for group, names in _GROUPS.items() for name in names]
CLASS_ID = {name: index for index, (name, _) in enumerate(_CLASSES)}
TOWN_LABELS = LabelTable('town', dict(enumerate(_CLASSES)))
