# Copyright 2026 The feat_ros authors
# SPDX-License-Identifier: Apache-2.0
"""What is installed, by colcon and by pip, and what may not be in the repository."""

import ast
from importlib.metadata import Distribution, distributions
import importlib.util
import os
from pathlib import Path
import re
import shutil
import subprocess
import sys
import xml.etree.ElementTree as ElementTree

import pytest

ROOT = Path(__file__).parents[1]
NAME = 'feat_ros'
HEADER = [
    '# Copyright 2026 The feat_ros authors',
    '# SPDX-License-Identifier: Apache-2.0',
]
# Libraries whose import name is not that of the package that brings them.
BROUGHT_BY = {'cv2': 'opencv-python-headless', 'tf2_ros': 'tf2_ros_py'}
# JetPack brings the first, no index has it for every Jetson; SAMFeat's teacher is on no index.
NOT_DECLARED = {'tensorrt', 'segment_anything'}


def repository_files() -> list[Path]:
    """Return the files that are or would be committed."""
    command = ['git', '-C', str(ROOT), 'ls-files', '--cached', '--others', '--exclude-standard']
    try:
        run = subprocess.run(command, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f'not a git checkout: {error}')
    paths = (ROOT / line for line in run.stdout.splitlines())
    return [path for path in paths if path.is_file()]


@pytest.fixture(scope='module')
def prefix(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Install a copy of the repository the way colcon does; return where to."""
    if importlib.util.find_spec('setuptools') is None:
        pytest.skip('setuptools is not installed')
    source, target = tmp_path_factory.mktemp('source'), tmp_path_factory.mktemp('target')
    for path in repository_files():
        copy = source / path.relative_to(ROOT)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, copy)
    command = [sys.executable, '-W', 'ignore', 'setup.py', '--quiet', 'install']
    command += ['--prefix', '/prefix', '--root', str(target)]
    command += ['--single-version-externally-managed']
    subprocess.run(command, cwd=source, check=True, capture_output=True)
    return target / 'prefix'


@pytest.fixture(scope='module')
def installed(prefix: Path) -> Path:
    """Return the installed package folder."""
    (marker,) = prefix.rglob(f'{NAME}/py.typed')
    return marker.parent


@pytest.fixture(scope='module')
def metadata(installed: Path) -> Distribution:
    (found,) = distributions(name=NAME, path=[str(installed.parent)])
    return found


@pytest.fixture(scope='module')
def manifest() -> ElementTree.Element:
    return ElementTree.parse(ROOT / 'package.xml').getroot()


def requirements_of(metadata: Distribution, extra: str | None = None) -> set[str]:
    """Return the base requirements, or those of one extra, without their markers."""
    pairs = [line.replace("'", '"').partition(';') for line in metadata.requires or []]
    wanted = {
        name.strip()
        for name, _, marker in pairs
        if (f'extra == "{extra}"' in marker if extra else 'extra' not in marker)
    }
    return {requirement.replace(' ', '') for requirement in wanted}


def names_of(requirements: set[str]) -> set[str]:
    return {re.split(r'[<>=!~;\[ ]', requirement)[0] for requirement in requirements}


def test_package_xml_and_setup_py_agree(
    manifest: ElementTree.Element, metadata: Distribution
) -> None:
    ours = metadata.metadata
    assert manifest.findtext('name') == ours['Name'].replace('-', '_') == NAME
    assert manifest.findtext('version') == metadata.version
    assert manifest.findtext('description') == ours['Summary']
    assert manifest.findtext('license') == (ours['License'] or ours['License-Expression'])
    maintainer = manifest.find('maintainer')
    assert maintainer is not None
    assert maintainer.get('email') == ours['Maintainer-email']
    assert maintainer.text == ours['Maintainer']
    assert (ROOT / 'LICENSE').read_text().count('Apache License') > 1


def test_colcon_takes_it_for_an_ament_python_package(manifest: ElementTree.Element) -> None:
    assert manifest.get('format') == '3'
    assert manifest.findtext('export/build_type') == 'ament_python'


def test_a_robot_needs_numpy_and_opencv_only(metadata: Distribution) -> None:
    assert requirements_of(metadata) == {'numpy>=1.21.6', 'opencv-python-headless<5,>=4.5.4'}
    assert metadata.metadata['Requires-Python'] == '>=3.10'


@pytest.mark.parametrize(
    ('given', 'wanted'), [({}, '4'), ({'OPENBLAS_THREAD_TIMEOUT': '20'}, '20')]
)
def test_threads_of_openblas_do_not_wait_for_long(given: dict[str, str], wanted: str) -> None:
    """It is said before NumPy is imported, and what a user says holds."""
    others = {k: v for k, v in os.environ.items() if k != 'OPENBLAS_THREAD_TIMEOUT'}
    code = (
        'import os, sys, feat_ros; assert "numpy" not in sys.modules; import numpy; '
        'print(os.environ["OPENBLAS_THREAD_TIMEOUT"])'
    )
    run = subprocess.run(
        [sys.executable, '-c', code], env=others | given, cwd=ROOT, check=True, text=True,
        capture_output=True,
    )  # fmt: skip
    assert run.stdout.split() == [wanted]


def test_extras(metadata: Distribution) -> None:
    extras = set(metadata.metadata.get_all('Provides-Extra') or [])
    assert extras == {
        'map', 'onnx', 'export', 'train', 'label', 'dds', 'fast', 'ray', 'test', 'dev',
    }  # fmt: skip
    (torch,) = requirements_of(metadata, 'train')
    assert re.fullmatch(r'torch==\d+\.\d+\.\d+', torch)
    # colcon test runs pytest only where the extra of this name asks for it.
    assert 'pytest' in requirements_of(metadata, 'test')
    development = requirements_of(metadata, 'dev')
    assert development > requirements_of(metadata, 'map') | requirements_of(metadata, 'test')
    assert 'torch' not in names_of(development)
    # 64-bit ARM has no wheels of these.
    wanted = [line for line in metadata.requires or [] if 'extra == "dev"' in line]
    limited = {line.partition(';')[0].strip() for line in wanted if 'x86_64' in line}
    assert limited == {'poselib', 'cyclonedds'}


def test_torch_is_pinned_in_one_place(metadata: Distribution) -> None:
    (torch,) = requirements_of(metadata, 'train')
    settings = [p for p in repository_files() if p.suffix in ('.py', '.txt', '.toml', '.cfg')]
    named = [path.name for path in [*settings, ROOT / 'Makefile'] if torch in path.read_text()]
    assert named == ['setup.py']


def test_every_file_of_the_package_is_installed(installed: Path) -> None:
    ours = {p.relative_to(ROOT / NAME) for p in repository_files() if ROOT / NAME in p.parents}
    theirs = {p.relative_to(installed) for p in installed.rglob('*') if p.is_file()}
    assert ours == {path for path in theirs if '__pycache__' not in path.parts}


def test_what_ros_looks_for_is_installed(prefix: Path) -> None:
    share = prefix / 'share'
    assert (share / 'ament_index' / 'resource_index' / 'packages' / NAME).read_text() == ''
    folders = ('launch', 'config', 'maps')
    ours = {p.relative_to(ROOT) for p in repository_files()}
    ours = {path for path in ours if path.parts[0] in folders} | {Path('package.xml')}
    theirs = {p.relative_to(share / NAME) for p in (share / NAME).rglob('*') if p.is_file()}
    assert ours == theirs
    # ros2 run looks here.
    assert os.access(prefix / 'lib' / NAME / NAME, os.X_OK)


def test_console_script(metadata: Distribution) -> None:
    scripts = {
        script.name: script.value
        for script in metadata.entry_points.select(group='console_scripts')
    }
    nodes = {name: f'{NAME}.nodes.{name}:main' for name in ('localizer', 'extractor', 'recorder')}
    # Executables of nodes are there where ROS was when the package was installed.
    assert scripts in ({NAME: f'{NAME}.cli:main'}, {NAME: f'{NAME}.cli:main', **nodes})


def test_every_imported_library_is_declared(
    manifest: ElementTree.Element, metadata: Distribution
) -> None:
    imported = set()
    for path in (ROOT / NAME).rglob('*.py'):
        for node in ast.walk(ast.parse(path.read_text(encoding='utf-8'))):
            if isinstance(node, ast.Import):
                imported |= {alias.name.split('.')[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and not node.level:
                imported.add(str(node.module).split('.')[0])
    libraries = imported - set(sys.stdlib_module_names) - {NAME}
    extras = metadata.metadata.get_all('Provides-Extra') or []
    declared = names_of(set().union(*(requirements_of(metadata, e) for e in [None, *extras])))
    declared |= {str(item.text) for item in manifest.iter('exec_depend')}
    assert {'numpy', 'cv2'} <= libraries
    assert {BROUGHT_BY.get(library, library) for library in libraries} <= declared | NOT_DECLARED


def test_every_source_file_has_the_licence_header() -> None:
    sources = [p for p in repository_files() if p.suffix == '.py' and p.stat().st_size > 0]
    assert len(sources) > 20
    bare = [p for p in sources if p.read_text(encoding='utf-8').splitlines()[:2] != HEADER]
    assert bare == []


def test_no_path_of_a_particular_machine() -> None:
    machine_path = re.compile(rb'(?<![\w.*)}>-])/(?:work|tmp|home|root)/\w')
    named = [
        f'{path.relative_to(ROOT)}: {line.decode(errors="replace").strip()}'
        for path in repository_files()
        if b'\0' not in path.read_bytes()[:1024]
        for line in path.read_bytes().splitlines()
        if machine_path.search(line)
    ]
    assert named == []


def test_ci_script_can_be_run() -> None:
    script = ROOT / '.ci' / 'run'
    assert os.access(script, os.X_OK)
    subprocess.run(['bash', '-n', str(script)], check=True)
