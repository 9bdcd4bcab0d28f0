# Copyright 2026 The feat_ros authors
# SPDX-License-Identifier: Apache-2.0
"""The scripts under requirements/, run with pip against small indexes of our own."""

import os
from pathlib import Path
import re
import subprocess
import sys
import zipfile

import pytest

FOLDER = Path(__file__).parents[1] / 'requirements'
UNREACHABLE = 'http://127.0.0.1:9/simple'

pytest.importorskip('pip', reason='pip is not installed')


def write_wheel(folder: Path, name: str, version: str, tag: str, needs: str = '') -> None:
    """Write an installable wheel without any module, and the index page that offers it."""
    module = name.replace('-', '_')
    info = f'{module}-{version}.dist-info'
    page = folder / name
    page.mkdir(parents=True, exist_ok=True)
    wheel = page / f'{module}-{version}-{tag}.whl'
    about = f'Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n'
    with zipfile.ZipFile(wheel, 'w') as archive:
        archive.writestr(f'{info}/METADATA', about + f'Requires-Dist: {needs}\n' * bool(needs))
        archive.writestr(f'{info}/WHEEL', f'Wheel-Version: 1.0\nTag: {tag}\n')
        archive.writestr(f'{info}/RECORD', f'{info}/METADATA,,\n{info}/WHEEL,,\n{info}/RECORD,,\n')
    links = (f'<a href="{path.name}">{path.name}</a>' for path in page.glob('*.whl'))
    (page / 'index.html').write_text('\n'.join(links))


def describe_package(folder: Path) -> None:
    """Write the metadata that the scripts read, as if feat_ros were installed in a folder."""
    info = folder / 'feat_ros-0.0.0.dist-info'
    info.mkdir(parents=True)
    (info / 'METADATA').write_text(
        'Metadata-Version: 2.1\nName: feat_ros\nVersion: 0.0.0\n'
        'Requires-Dist: numpy>=1.21.6\n'
        'Requires-Dist: opencv-python-headless<5,>=4.5.4\n'
        'Requires-Dist: onnxruntime; extra == "onnx"\n'
        'Requires-Dist: torch==9.8.7; extra == "train"\n'
        'Requires-Dist: pycolmap; extra == "map"\n'
    )


def run_script(
    tmp_path: Path, script: str, *arguments: str, index: str
) -> subprocess.CompletedProcess[str]:
    """Run a script with an index as pip's only one; what it installs goes to tmp_path/site."""
    describe_package(tmp_path / 'metadata')
    environment = {k: v for k, v in os.environ.items() if not k.startswith('PIP_')}
    environment |= {
        'PIP_CONFIG_FILE': os.devnull,
        'PIP_INDEX_URL': index,
        'PIP_RETRIES': '0',
        'PIP_TARGET': str(tmp_path / 'site'),
        'PYTHONPATH': str(tmp_path / 'metadata'),
    }
    command = [sys.executable, str(FOLDER / script), *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True)


def install_torch(tmp_path: Path, cpu_index: str, index: str) -> subprocess.CompletedProcess[str]:
    return run_script(tmp_path, 'install_torch.py', '--cpu-index', cpu_index, index=index)


def installed(tmp_path: Path) -> list[str]:
    return sorted(path.name for path in (tmp_path / 'site').glob('*.dist-info'))


def test_torch_comes_from_the_cpu_index(tmp_path: Path) -> None:
    cpu, plain = tmp_path / 'cpu', tmp_path / 'plain'
    write_wheel(cpu, 'torch', '9.8.7+cpu', 'py3-none-any')
    write_wheel(plain, 'torch', '9.8.7', 'py3-none-any', needs='nvidia-cublas')
    write_wheel(plain, 'nvidia-cublas', '1.0', 'py3-none-any')
    run = install_torch(tmp_path, cpu.as_uri(), plain.as_uri())
    assert run.returncode == 0, run.stderr
    assert installed(tmp_path) == ['torch-9.8.7+cpu.dist-info']


def test_torch_comes_from_the_plain_index_where_the_other_is_away(tmp_path: Path) -> None:
    write_wheel(tmp_path / 'plain', 'torch', '9.8.7', 'py3-none-any')
    run = install_torch(tmp_path, UNREACHABLE, (tmp_path / 'plain').as_uri())
    assert run.returncode == 0, run.stderr
    assert installed(tmp_path) == ['torch-9.8.7.dist-info']


def test_torch_with_cuda_is_refused(tmp_path: Path) -> None:
    plain = tmp_path / 'plain'
    write_wheel(plain, 'torch', '9.8.7', 'py3-none-any', needs='nvidia-cublas')
    write_wheel(plain, 'nvidia-cublas', '1.0', 'py3-none-any')
    run = install_torch(tmp_path, UNREACHABLE, plain.as_uri())
    assert run.returncode == 1
    said = 'no torch==9.8.7 without CUDA: .* would bring nvidia-cublas; .* by hand\n'
    assert re.fullmatch(said, run.stdout + run.stderr)
    assert installed(tmp_path) == []


def write_robot_wheels(index: Path, machine: str) -> None:
    tag = f'cp310-cp310-manylinux_2_28_{machine}'
    for version in ('1.26.4', '2.0.0'):
        write_wheel(index, 'numpy', version, 'py3-none-any')
    for version in ('4.11.0.86', '4.12.0.88'):
        write_wheel(index, 'opencv-python-headless', version, 'py3-none-any')
    for version in ('1.23.2', '1.24.0'):
        write_wheel(index, 'onnxruntime', version, tag)


def test_robot_profile_resolves(tmp_path: Path) -> None:
    write_robot_wheels(tmp_path / 'index', 'aarch64')
    run = run_script(tmp_path, 'resolve.py', 'humble', index=(tmp_path / 'index').as_uri())
    assert run.returncode == 0, run.stdout
    assert run.stdout == (
        'resolve: humble, Python 3.10: numpy 1.26.4, onnxruntime 1.23.2, '
        'opencv-python-headless 4.11.0.86\n'
    )


def test_robot_profile_without_arm_wheels_is_found(tmp_path: Path) -> None:
    write_robot_wheels(tmp_path / 'index', 'x86_64')
    run = run_script(tmp_path, 'resolve.py', 'humble', index=(tmp_path / 'index').as_uri())
    assert run.returncode == 1
    assert 'humble cannot be installed on 64-bit ARM' in run.stdout
    assert re.search('ERROR: .*onnxruntime', run.stdout)


def test_resolving_without_an_index_is_skipped_aloud(tmp_path: Path) -> None:
    run = run_script(tmp_path, 'resolve.py', index=UNREACHABLE)
    assert run.returncode == 0
    assert run.stdout == 'resolve: skipped, because the package index cannot be reached\n'


def test_an_unknown_profile_lists_the_known_ones(tmp_path: Path) -> None:
    run = run_script(tmp_path, 'resolve.py', 'hmuble', index=UNREACHABLE)
    assert run.returncode == 2
    assert "no profile 'hmuble': choose from humble, jazzy, lyrical" in run.stderr


def test_every_profile_is_resolved() -> None:
    text = (FOLDER / 'resolve.py').read_text()
    (table,) = re.findall(r'PYTHON_OF = \{(.*)\}', text)
    assert re.findall(r"'(\w+)':", table) == sorted(
        path.stem.removeprefix('robot-') for path in FOLDER.glob('robot-*.txt')
    )
