# Copyright 2026 The feat_ros authors
# SPDX-License-Identifier: Apache-2.0
"""The layout of the package: who may import whom, read from the source."""

import ast
from collections.abc import Iterator, Mapping
from graphlib import CycleError, TopologicalSorter
import importlib.util
from pathlib import Path
import subprocess
import sys
import xml.etree.ElementTree as ElementTree

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = 'feat_ros'

# A file imports only from its own level or a lower one. A new module is added here first.
LEVELS = {
    1: 'errors types config geometry camera image semantics',
    2: 'models matching pnp pose_error sfm_map map_index retrieval',
    3: 'runtimes extractors weights',
    4: 'localizer',
    5: 'workers map_builder map_life map_check build_folder bag_images reconstruction '
    'triangulation pose_noise alignment '
    'colmap_files export tensorrt_operators trajectory bags evaluation report town plots server',
    6: 'replay bench feature_bench retrieval_bench recall_bench extraction_bench scaling_bench '
    'frame_bench '
    'training conversions intake monitor driver dds',
    7: 'cli nodes',
    8: '__main__',
}
# The doors to the package do not know each other.
SIBLINGS = 7
LEVEL_OF = {unit: level for level, units in LEVELS.items() for unit in units.split()}
# Every import of a module also runs the package's own __init__.py: it imports nothing of ours.
LEVEL_OF[''] = 0

# Where alone a library may be imported, at the top of a file or inside a function.
ONLY_IN = {
    'torch': (
        'models',
        'runtimes.torch',
        'runtimes.torch_matching',
        'export',
        'training',
        'bench',
        'feature_bench',
        'extraction_bench',
    ),
    'onnx': ('export', 'tensorrt_operators'),
    'onnxruntime': ('runtimes', 'export', 'extraction_bench'),
    'tensorrt': ('runtimes',),
    'pycolmap': (
        'map_builder',
        'reconstruction',
        'triangulation',
        'alignment',
        'colmap_files',
        'bench',
    ),
    'poselib': ('bench',),
    'numba': ('retrieval.compiled',),
    'ray': ('workers',),
    'cyclonedds': ('dds',),
    'transformers': ('training',),
}
# What a robot does without: loaded by the function that needs it, never with the base modules.
HEAVY = {*ONLY_IN, 'matplotlib', 'rosbags', 'scipy', 'tqdm'}

Imports = Mapping[str, frozenset[str]]


def read_imports(package: Path) -> Imports:
    """Return the names that each module under a package folder imports, wherever it does."""
    paths = {}
    for path in package.rglob('*.py'):
        parts = path.relative_to(package.parent).with_suffix('').parts
        paths['.'.join(parts[:-1] if parts[-1] == '__init__' else parts)] = path
    return {
        module: frozenset(
            base if f'{base}.{name}' not in paths else f'{base}.{name}'
            for base, name in names_imported(module, path)
        )
        for module, path in paths.items()
    }


def names_imported(module: str, path: Path) -> Iterator[tuple[str, str]]:
    """Yield a pair (module, name or '') for each thing that a file imports."""
    package = module if path.name == '__init__.py' else module.rpartition('.')[0]
    for node in ast.walk(ast.parse(path.read_text(encoding='utf-8'))):
        if isinstance(node, ast.Import):
            yield from ((alias.name, '') for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            relative = '.' * node.level + (node.module or '')
            base = importlib.util.resolve_name(relative, package)
            yield from ((base, alias.name) for alias in node.names)
        elif isinstance(node, ast.Call) and 'import_module' in ast.unparse(node.func):
            constants = [a.value for a in node.args if isinstance(a, ast.Constant)]
            yield from ((value, '') for value in constants if isinstance(value, str))


def unit_of(module: str) -> str:
    """Return the file or folder directly under the package that holds a module, or ''."""
    return module.partition('.')[2].partition('.')[0]


def internal(imports: Imports) -> dict[str, set[str]]:
    """Return the imports that stay inside the package."""
    return {
        module: {name for name in names if name.split('.')[0] == PACKAGE}
        for module, names in imports.items()
    }


def upward_imports(imports: Imports) -> list[str]:
    """Return one line for each import from a higher level or between siblings."""
    faults = []
    for module, names in internal(imports).items():
        for name in sorted(names - {PACKAGE}):
            ours, theirs = LEVEL_OF[unit_of(module)], LEVEL_OF[unit_of(name)]
            siblings = ours == theirs == SIBLINGS and unit_of(module) != unit_of(name)
            if theirs > ours or siblings:
                faults.append(f'{module} (level {ours}) imports {name} (level {theirs})')
    return faults


def import_cycle(imports: Imports) -> list[str]:
    """Return the modules of one cycle, or nothing."""
    try:
        TopologicalSorter(internal(imports)).prepare()
    except CycleError as error:
        return list(error.args[1])
    return []


def misplaced_imports(imports: Imports, only_in: Mapping[str, tuple[str, ...]]) -> list[str]:
    """Return one line for each library imported outside the places that may."""
    faults = []
    for module, names in imports.items():
        for library in sorted({name.split('.')[0] for name in names} & set(only_in)):
            places = (f'{PACKAGE}.{place}' for place in only_in[library])
            if not any(module == p or module.startswith(f'{p}.') for p in places):
                faults.append(f'{module} imports {library}')
    return faults


def reachable(imports: Imports, module: str) -> set[str]:
    """Return everything of the package that a module imports, directly or not."""
    graph, seen, waiting = internal(imports), set[str](), [module]
    while waiting:
        for name in graph.get(waiting.pop(), set()) - seen:
            seen.add(name)
            waiting.append(name)
    return seen


@pytest.fixture(scope='module')
def imports() -> Imports:
    return read_imports(ROOT / PACKAGE)


def test_every_module_has_a_level(imports: Imports) -> None:
    assert {unit_of(module) for module in imports} <= set(LEVEL_OF)


def test_a_unit_is_listed_once() -> None:
    units = ' '.join(LEVELS.values()).split()
    assert len(units) == len(set(units))


def test_imports_go_down(imports: Imports) -> None:
    assert upward_imports(imports) == []


def test_no_import_cycle(imports: Imports) -> None:
    assert import_cycle(imports) == []


def test_libraries_stay_in_their_places(imports: Imports) -> None:
    assert misplaced_imports(imports, ONLY_IN) == []


def test_only_nodes_know_ros(imports: Imports) -> None:
    manifest = ElementTree.parse(ROOT / 'package.xml')
    ros = {str(item.text): ('nodes',) for item in manifest.iter('exec_depend')}
    assert 'rclpy' in ros
    assert misplaced_imports(imports, ros) == []


def test_the_vocabulary_sees_opencv_only_in_image(imports: Imports) -> None:
    users = {module for module, names in imports.items() if 'cv2' in names}
    assert {m for m in users if LEVEL_OF[unit_of(m)] == 1} == {f'{PACKAGE}.image'}


@pytest.mark.parametrize('unit', ['evaluation', 'report'])
def test_judges_know_nothing_of_the_localizer(imports: Imports, unit: str) -> None:
    judges = {m for m in imports if unit_of(m) == unit}
    assert {n for m in judges for n in reachable(imports, m)} & {f'{PACKAGE}.localizer'} == set()


def test_base_modules_load_nothing_heavy(imports: Imports) -> None:
    base = sorted(
        module
        for module in imports
        if LEVEL_OF[unit_of(module)] <= 4
        and unit_of(module) not in ('models', 'runtimes')
        and module != f'{PACKAGE}.retrieval.compiled'
    )
    assert {f'{PACKAGE}.{name}' for name in ('localizer', 'extractors', 'sfm_map')} <= set(base)
    code = f'import sys, {", ".join(base)}; print(*{{m.split(".")[0] for m in sys.modules}})'
    run = subprocess.run(
        [sys.executable, '-c', code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert 'numpy' in run.stdout.split()
    assert set(run.stdout.split()) & (HEAVY | {'rclpy'}) == set()


def write_package(tmp_path: Path, files: Mapping[str, str]) -> Imports:
    for name, text in files.items():
        path = tmp_path / PACKAGE / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return read_imports(tmp_path / PACKAGE)


@pytest.mark.parametrize(
    'statement',
    [
        'import feat_ros.localizer',
        'from feat_ros import localizer',
        'from feat_ros.localizer import Localizer',
        'from .localizer import Localizer',
        'from . import localizer',
        'def late():\n    from feat_ros import localizer',
        'import importlib\nimportlib.import_module("feat_ros.localizer")',
    ],
)
def test_an_upward_import_is_found(tmp_path: Path, statement: str) -> None:
    imports = write_package(tmp_path, {'pnp.py': statement, 'localizer.py': 'import feat_ros.pnp'})
    found = ['feat_ros.pnp (level 2) imports feat_ros.localizer (level 4)']
    assert upward_imports(imports) == found
    assert set(import_cycle(imports)) == {'feat_ros.pnp', 'feat_ros.localizer'}
    assert reachable(imports, 'feat_ros.pnp') == {'feat_ros.localizer', 'feat_ros.pnp'}


def test_an_import_between_siblings_is_found(tmp_path: Path) -> None:
    files = {
        'cli/__init__.py': '',
        'cli/live.py': 'from feat_ros.cli import words\nfrom feat_ros.nodes import driver',
        'cli/words.py': '',
        'nodes/driver.py': 'from feat_ros import server',
        'server.py': '',
    }
    found = ['feat_ros.cli.live (level 7) imports feat_ros.nodes.driver (level 7)']
    assert upward_imports(write_package(tmp_path, files)) == found


def test_a_misplaced_library_is_found(tmp_path: Path) -> None:
    files = {
        'runtimes/torch.py': 'import torch.nn',
        'runtimes/onnx.py': 'def load():\n    from torch import nn',
        'models/net.py': 'import torch',
    }
    found = ['feat_ros.runtimes.onnx imports torch']
    assert misplaced_imports(write_package(tmp_path, files), ONLY_IN) == found
