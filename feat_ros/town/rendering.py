# Copyright 2026 The feat_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Pictures of a scene with their exact depth and labels."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from feat_ros.camera import Camera
from feat_ros.geometry import Rigid3d, so3_exp
from feat_ros.image import Image
from feat_ros.town.classes import CLASS_ID, TOWN_LABELS
from feat_ros.town.light import Light, SKY_REACH, SKY_SIZE
from feat_ros.town.mesh import Mesh
from feat_ros.town.raster import Layers, rasterize, View
from feat_ros.town.world import Scene

Float = npt.NDArray[np.float64]
Float32 = npt.NDArray[np.float32]

# Samples a pixel along each axis.
_SUPER = 2
# Standard deviation, in samples, of the blur of a small lens.
_LENS_BLUR = 1.44
# A single plane serves up to this angle off the axis; beyond it, the faces of a cube.
_PLANE_ANGLE = np.radians(62.0)
_BLUR_TAPS = 5
# Samples of the picture to one of its mirror image.
_MIRROR = 4
# Rows of samples that are lit at a time.
_STRIP = 24
_LAMP_REACH_M = 32.0
_GLOW_RGB = np.array([1.0, 0.84, 0.62])
_LAMP_GAIN, _HEADLIGHT_GAIN = 36.0, 32.0
_LAMP_RGB = np.array([1.0, 0.66, 0.36])
_HEADLIGHT_RGB = np.array([1.0, 0.95, 0.85])


@dataclass(frozen=True, eq=False)
class Frame:
    """One picture and the truth about it.

    :ivar image: (H, W, 3) uint8 RGB.
    :ivar depth: (H, W) float32, z in the camera's optical frame, metres; infinite for the sky,
        not positive where a fisheye sees more than 90 degrees off its axis.
    :ivar class_id: (H, W) uint8, ids of :data:`feat_ros.town.classes.TOWN_LABELS`.
    :ivar group: (H, W) uint8 stability groups.
    :ivar is_static: (H, W) bool, whether the pixel's surface stands still during the drive.
    """

    image: Image
    depth: Float32
    class_id: npt.NDArray[np.uint8]
    group: npt.NDArray[np.uint8]
    is_static: npt.NDArray[np.bool_]
    cam_from_map: Rigid3d
    camera: Camera


def render(
    scene: Scene,
    camera: Camera,
    cam_from_map: Rigid3d,
    rng: np.random.Generator,
    *,
    time_s: float = 0.0,
    velocity: npt.ArrayLike = (0.0, 0.0, 0.0),
) -> Frame:
    """Take a picture.

    Flat views that cover the camera are drawn with two samples a pixel along each axis and lit;
    the camera's pixels average four samples of them. Depth and label are those of one surface,
    the one that most of the four samples hit.

    :param rng: the noise of the sensor.
    :param time_s: where moving things are.
    :param velocity: (3,) of the camera in the map, for motion blur.
    """
    eye = cam_from_map.inverse().translation
    moving, footprints = scene.moving(time_s, eye)
    mesh = Mesh.join([scene.mesh, moving])
    plan = scene.shaded(scene.plan, footprints)
    lens = _lens(camera)
    parts = []
    for face in lens.faces:
        view = _view(face, cam_from_map)
        layers = rasterize(mesh, view)
        shaded = _shade(scene, mesh, layers, view, plan, cam_from_map)
        if scene.wetness is not None:
            _add_mirror(scene, mesh, layers, view, plan, cam_from_map, shaded)
        parts.append((shaded, layers.quad))
    light, quad = lens.gather(parts)
    chosen = _majority(quad)
    depth = _depth(mesh, chosen, lens.rays, cam_from_map)
    light = cv2.GaussianBlur(light, (9, 9), _LENS_BLUR, borderType=cv2.BORDER_REPLICATE)
    radiance = cv2.resize(light, camera.size_wh, interpolation=cv2.INTER_AREA)
    if scene.condition.shutter_s > 0:
        step = np.asarray(velocity, float) * scene.condition.shutter_s
        radiance = _blur(radiance, depth, lens.slopes, cam_from_map.rotation @ step)
    class_id = np.append(mesh.class_id, np.uint8(CLASS_ID['sky']))[chosen]
    return Frame(
        _expose(radiance, scene, rng),
        depth,
        class_id,
        np.asarray(TOWN_LABELS.group_by_id[class_id]),
        (chosen >= 0) & (chosen < len(scene.mesh)),
        cam_from_map,
        camera,
    )


@dataclass(frozen=True, eq=False)
class _Face:
    """A flat view turned against the camera: ``face_from_cam``, (3, 3) intrinsics, size."""

    face_from_cam: Float
    intrinsics: Float
    size_wh: tuple[int, int]


@dataclass(frozen=True, eq=False)
class _Lens:
    """How the samples of a camera lie in flat views.

    :ivar rays: (3, H, W) with z = 1, of the pixel centres (z = -1 or 0 to the side).
    :ivar slopes: (2, 3, H, W) float32, derivative of the pixel by the direction of those rays.
    :ivar maps: per face None, where samples are the face's own pixels, or (x, y, mask).
    """

    faces: tuple[_Face, ...]
    rays: Float
    slopes: Float32
    maps: tuple[Any, ...]

    def gather(self, parts: list[Any]) -> tuple[Float32, npt.NDArray[np.int32]]:
        """Bring radiance and quads of the faces to the camera's samples."""
        if self.maps[0] is None:
            return parts[0][0], parts[0][1]
        shape = self.maps[0][0].shape
        light = np.zeros((*shape, 3), np.float32)
        quad = np.full(shape, -1, np.int32)
        for (radiance, ids), (x, y, mask) in zip(parts, self.maps, strict=True):
            edge = cv2.BORDER_REPLICATE
            cv2.copyTo(cv2.remap(radiance, x, y, cv2.INTER_LINEAR, borderMode=edge), mask, light)
            column = np.clip(np.rint(x), 0, ids.shape[1] - 1).astype(np.int32)
            row = np.clip(np.rint(y), 0, ids.shape[0] - 1).astype(np.int32)
            np.copyto(quad, ids[row, column], where=mask.view(bool))
        return light, quad


@lru_cache(maxsize=4)
def _lens(camera: Camera) -> _Lens:
    width, height = camera.size_wh
    rays = _rays(camera, 1)
    flat = rays.reshape(-1, 3)
    steps = np.eye(3) * 1e-4
    slopes = [(camera.project(flat + step) - camera.project(flat - step)) / 2e-4 for step in steps]
    shape = (2, 3, camera.height, camera.width)
    fixed = (
        np.ascontiguousarray(np.moveaxis(rays, 2, 0)),
        np.nan_to_num(np.array(slopes).transpose(2, 0, 1)).astype(np.float32).reshape(shape),
    )
    if not camera.is_fisheye and not np.any(camera.distortion):
        intrinsics = np.diag([_SUPER, _SUPER, 1.0]) @ _intrinsics(camera)
        face = _Face(np.eye(3), intrinsics, (width * _SUPER, height * _SUPER))
        return _Lens((face,), *fixed, (None,))
    samples = _rays(camera, _SUPER)
    known = samples[np.isfinite(samples[..., 2])]
    angle = np.arccos(np.clip(known[:, 2] / np.linalg.norm(known, axis=1), -1, 1)).max()
    focal = camera.focal_xy * _SUPER
    if angle < _PLANE_ANGLE:
        plane = known[:, :2] / known[:, 2:]
        low, high = plane.min(axis=0) - 0.01, plane.max(axis=0) + 0.01
        faces = [_flat_face(np.eye(3), focal, low, high)]
    else:
        turns = [[0, 0, 0], [0, 1, 0], [0, -1, 0], [1, 0, 0], [-1, 0, 0]]
        reach = np.full(2, 1.01)
        faces = [_flat_face(so3_exp(np.array(t) * np.pi / 2), focal, -reach, reach) for t in turns]
    return _Lens(tuple(faces), *fixed, tuple(_face_map(face, samples) for face in faces))


def _intrinsics(camera: Camera) -> Float:
    (fx, fy), (cx, cy) = camera.focal_xy, camera.center_xy
    return np.array([[fx, 0, cx], [0, fy, cy], [0, 0, 1.0]])


def _rays(camera: Camera, factor: int) -> Float:
    width, height = camera.size_wh
    x = (np.arange(width * factor) + 0.5) / factor
    y = (np.arange(height * factor) + 0.5) / factor
    pixels = np.stack(np.meshgrid(x, y), axis=-1).reshape(-1, 2)
    rays = camera.unproject(pixels)
    rays = rays / np.maximum(np.abs(rays[:, 2:]), 1e-6)
    return np.asarray(rays.reshape(height * factor, width * factor, 3))


def _flat_face(face_from_cam: Float, focal: Float, low: Float, high: Float) -> _Face:
    size = np.ceil((high - low) * focal).astype(int)
    intrinsics = np.array(
        [[focal[0], 0, -low[0] * focal[0]], [0, focal[1], -low[1] * focal[1]], [0, 0, 1]]
    )
    return _Face(face_from_cam, intrinsics, (int(size[0]), int(size[1])))


def _face_map(face: _Face, rays: Float) -> tuple[Float32, Float32, npt.NDArray[np.uint8]]:
    seen = rays @ face.face_from_cam.T
    z = seen[..., 2]
    with np.errstate(invalid='ignore', divide='ignore'):
        x = seen[..., 0] / z * face.intrinsics[0, 0] + face.intrinsics[0, 2] - 0.5
        y = seen[..., 1] / z * face.intrinsics[1, 1] + face.intrinsics[1, 2] - 0.5
        inside = (z > 0) & (x > -0.5) & (y > -0.5)
        inside &= (x < face.size_wh[0] - 0.5) & (y < face.size_wh[1] - 0.5)
    x, y = np.where(inside, x, -10), np.where(inside, y, -10)
    return x.astype(np.float32), y.astype(np.float32), inside.astype(np.uint8)


def _view(face: _Face, cam_from_map: Rigid3d) -> View:
    face_from_map = Rigid3d(face.face_from_cam, np.zeros(3)) @ cam_from_map
    matrix = np.column_stack([face_from_map.rotation, face_from_map.translation])
    eye = np.append(cam_from_map.inverse().translation, 1.0)
    return View(face.intrinsics @ matrix, face.size_wh, eye)


def _majority(quad: npt.NDArray[np.int32]) -> npt.NDArray[np.int32]:
    """The quad that most of a pixel's four samples hit; the first of two equal pairs."""
    a, b = quad[::2, ::2], quad[::2, 1::2]
    c, d = quad[1::2, ::2], quad[1::2, 1::2]
    a_has_pair = (a == b) | (a == c) | (a == d)
    b_has_pair = (b == c) | (b == d)
    return np.asarray(np.where(a_has_pair, a, np.where(b_has_pair, b, np.where(c == d, c, a))))


def _depth(mesh: Mesh, quad: npt.NDArray[np.int32], rays: Float, cam_from_map: Rigid3d) -> Float32:
    """Where the ray through the pixel's centre meets the plane of its quad."""
    normal = mesh.normal @ cam_from_map.rotation.T
    offset = np.sum(normal * cam_from_map.apply(mesh.origin), axis=1)
    x, y, z = rays
    with np.errstate(divide='ignore', invalid='ignore'):
        toward = normal[:, 0][quad] * x + normal[:, 1][quad] * y + normal[:, 2][quad] * z
        depth = offset[quad] / toward * z
    depth[quad < 0] = np.inf
    return np.asarray(depth, np.float32)


def _srgb_to_linear() -> Float32:
    value = np.arange(256) / 255
    low, high = value / 12.92, ((value + 0.055) / 1.055) ** 2.4
    return np.where(value < 0.04045, low, high).astype(np.float32)


def _tone_curve() -> npt.NDArray[np.uint8]:
    """Codes of signals of 0 to _SATURATED: a shoulder in place of hard saturation."""
    signal = (np.arange(_TONE_STEPS * _SATURATED) + 0.5) / _TONE_STEPS
    value = 1 - np.exp(-1.7 * signal**1.2)
    high = 1.055 * value ** (1 / 2.4) - 0.055
    coded = np.where(value < 0.0031308, value * 12.92, high)
    return np.asarray(np.rint(coded * 255), np.uint8)


_TO_LINEAR = _srgb_to_linear()
_TONE_STEPS, _SATURATED = 4096, 4
_TONE = _tone_curve()


def _per_pixel(table: npt.ArrayLike, quad: npt.NDArray[np.int32], sky: float) -> Float32:
    return np.asarray(np.append(np.asarray(table, np.float32), np.float32(sky))[quad])


def _linear(row: Float, width: int, rows: range) -> Float32:
    across = row[0] * (np.arange(width) + 0.5)
    down = row[1] * (np.array(rows) + 0.5) + row[2]
    return np.asarray(across.astype(np.float32)[None, :] + down.astype(np.float32)[:, None])


@dataclass(frozen=True, eq=False)
class _Seen:
    """What some rows of a view see.

    :ivar color: (h, w, 4) uint8; key and quad likewise, as in :class:`Layers`.
    :ivar ray: 3 of (h, w), directions in the map with depth 1.
    :ivar xyz: 3 of (h, w), map coordinates.
    """

    color: npt.NDArray[np.uint8]
    key: Float32
    quad: npt.NDArray[np.int32]
    ray: list[Float32]
    xyz: list[Float32]

    @staticmethod
    def of(layers: Layers, view: View, rows: range) -> _Seen:
        part = np.s_[rows.start : rows.stop]
        key = layers.key[part]
        depth = 1 / np.maximum(key, np.float32(1e-4))
        inverse = np.linalg.inv(view.projection[:, :3])
        ray = [_linear(inverse[k], view.size_wh[0], rows) for k in range(3)]
        xyz = [ray[k] * depth + np.float32(view.eye[k]) for k in range(3)]
        return _Seen(layers.color[part], key, layers.quad[part], ray, xyz)


def _shade(
    scene: Scene, mesh: Mesh, layers: Layers, view: View, plan: Float32, cam_from_map: Rigid3d
) -> Float32:
    """Radiance (H, W, 3) of what a view sees, by so few rows at a time that they stay cached."""
    width, height = view.size_wh
    light = scene.light
    tables = _upward(mesh), _toward_sun(mesh, light), mesh.glow * _glow_gain(mesh, light)
    out = np.empty((height, width, 3), np.float32)
    for top in range(0, height, _STRIP):
        rows = range(top, min(top + _STRIP, height))
        seen = _Seen.of(layers, view, rows)
        out[top : rows.stop] = _radiance(scene, mesh, seen, tables, plan, cam_from_map)
    return out


def _radiance(
    scene: Scene,
    mesh: Mesh,
    seen: _Seen,
    tables: tuple[Float, Float, Float],
    plan: Float32,
    cam_from_map: Rigid3d,
) -> Float32:
    light = scene.light
    upward, toward_sun, glow = (_per_pixel(table, seen.quad, 0.0) for table in tables)
    occlusion = _occlusion(scene, plan, seen.xyz)
    parts = [
        (upward * np.float32(light.sky[c] - light.bounce[c]) + np.float32(light.bounce[c]))
        * occlusion
        for c in range(3)
    ]
    if np.any(light.sun):
        if scene.shadow is not None:
            toward_sun *= _sunlit(scene, seen.xyz)
        for c in range(3):
            parts[c] += toward_sun * np.float32(light.sun[c])
    if light.lamp > 0:
        _add_lamps(scene, mesh, seen, parts, cam_from_map)
    glow *= seen.color[..., 3]
    haze = 1 / (1 + np.float32(light.haze_m) * seen.key)
    for c in range(3):
        parts[c] += glow * np.float32(_GLOW_RGB[c] / 255)
        parts[c] *= _TO_LINEAR[seen.color[..., c]]
        parts[c] += haze * (np.float32(light.haze[c]) - parts[c])
    out = np.asarray(cv2.merge(parts), np.float32)
    is_sky = seen.quad < 0
    if is_sky.any():
        cv2.copyTo(_sky(seen.ray, light), is_sky.view(np.uint8), out)
    return out


def _add_mirror(
    scene: Scene,
    mesh: Mesh,
    layers: Layers,
    view: View,
    plan: Float32,
    cam_from_map: Rigid3d,
    out: Float32,
) -> None:
    """Put a mirror image on the wet ground, in place.

    The world is drawn once more, small, as the eye below the ground sees it: a pixel of the ground
    shows what the same pixel of that picture shows. Schlick, "An inexpensive BRDF model for
    physically-based rendering", 1994, equation 15, gives the share that is mirrored.
    """
    is_flat = np.isin(mesh.class_id, [CLASS_ID['road'], CLASS_ID['pavement']])
    ground = _per_pixel(is_flat & (mesh.normal[:, 2] > 0.5), layers.quad, 0.0)
    if not ground.any():
        return
    small = (max(1, view.size_wh[0] // _MIRROR), max(1, view.size_wh[1] // _MIRROR))
    scale = np.diag([small[0] / view.size_wh[0], small[1] / view.size_wh[1], 1.0])
    flip = np.diag([1.0, 1.0, -1.0, 1.0])
    below = View(
        scale @ view.projection @ flip, small, view.eye * [1, 1, -1, 1], min_thickness=3.0
    )
    mirrored = rasterize(mesh, below)
    picture = _shade(scene, mesh, mirrored, below, plan, cam_from_map)
    picture = cv2.blur(picture, (3, 15), borderType=cv2.BORDER_REPLICATE)
    picture = cv2.resize(picture, view.size_wh, interpolation=cv2.INTER_LINEAR)
    seen = _Seen.of(layers, view, range(view.size_wh[1]))
    steep = -seen.ray[2] / np.sqrt(sum(axis * axis for axis in seen.ray))
    mirror = np.float32(0.02) + np.float32(0.98) * (1 - np.clip(steep, 0, 1)) ** 5
    assert scene.wetness is not None
    mirror *= _on_plan(scene, scene.wetness, seen.xyz) * ground
    out *= (1 - mirror * np.float32(0.8) - np.float32(0.3) * ground)[..., None]
    out += picture * mirror[..., None]


def _upward(mesh: Mesh) -> Float:
    """How much of the light from above a surface gets, 0 to 1."""
    return np.where(mesh.is_two_sided, 0.55, 0.5 + 0.5 * mesh.normal[:, 2])


def _toward_sun(mesh: Mesh, light: Light) -> Float:
    # Leaves and cloth let light through: what side they are seen from does not matter.
    cosine = mesh.normal @ light.to_sun
    return np.where(mesh.is_two_sided, 0.55, np.maximum(cosine, 0))


def _glow_gain(mesh: Mesh, light: Light) -> Float:
    is_signal = mesh.class_id == CLASS_ID['traffic light']
    is_lamp = mesh.class_id == CLASS_ID['street lamp']
    return np.where(is_signal, 1.0, np.where(is_lamp & (light.lamp == 0), 0.0, light.glow))


def _on_plan(scene: Scene, plan: Float32, xyz: list[Float32]) -> Float32:
    """Values of a top view where the pixels' surfaces are."""
    cells = scene.plan_pixel(np.array([[0.0, 0.0], [1.0, 1.0]]))
    scale = (cells[1] - cells[0]).astype(np.float32)
    x = xyz[0] * scale[0] + np.float32(cells[0, 0] - 0.5)
    y = xyz[1] * scale[1] + np.float32(cells[0, 1] - 0.5)
    return np.asarray(cv2.remap(plan, x, y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE))


def _occlusion(scene: Scene, plan: Float32, xyz: list[Float32]) -> Float32:
    """Light from above that reaches the ground between and under things."""
    free = _on_plan(scene, plan, xyz)
    near_ground = np.clip(1 - xyz[2] * np.float32(1 / 0.7), 0, 1)
    return np.asarray(1 - near_ground * (1 - free), np.float32)


def _sunlit(scene: Scene, xyz: list[Float32]) -> Float32:
    """Share of the sun that reaches each pixel: two looks at the shadow picture."""
    assert scene.shadow is not None
    m = scene.shadow_matrix.astype(np.float32)
    x, y = (m[k, k] * xyz[k] + (m[k, 2] * xyz[2] + m[k, 3]) for k in range(2))
    key = m[2, 0] * xyz[0] + m[2, 1] * xyz[1] + (m[2, 2] * xyz[2] + np.float32(0.12))
    total = np.zeros_like(key)
    for dx, dy in ((-0.9, -0.7), (0.0, 0.2)):
        near = cv2.remap(
            scene.shadow,
            x + np.float32(dx),
            y + np.float32(dy),
            cv2.INTER_NEAREST,
            borderMode=cv2.BORDER_CONSTANT,
            borderValue=-1e9,
        )
        total += near < key
    return np.asarray(total * np.float32(0.5))


def _add_lamps(
    scene: Scene, mesh: Mesh, seen: _Seen, parts: list[Float32], cam_from_map: Rigid3d
) -> None:
    """Add street lamps and the camera's own headlights, falling off with distance squared.

    Worked out for every second sample along each axis, once a pixel: nearly all of the night is.
    """
    height, width = seen.quad.shape
    xyz, quad = [a[::2, ::2] for a in seen.xyz], seen.quad[::2, ::2]
    eye = cam_from_map.inverse().translation
    normals = [_per_pixel(mesh.normal[:, k], quad, 0.0) for k in range(3)]
    both = _per_pixel(mesh.is_two_sided, quad, 0.0) > 0
    street = np.zeros_like(xyz[0])
    for lamp in scene.town.lamps:
        if abs(lamp[0] - eye[0]) < _LAMP_REACH_M:
            street += _falloff(lamp, xyz, normals, both)
    ahead = cam_from_map.rotation[2]
    front = eye + 1.2 * ahead - [0, 0, 0.75]
    beam = _falloff(front, xyz, normals, both)
    away = [xyz[k] - np.float32(front[k]) for k in range(3)]
    along = sum(away[k] * np.float32(ahead[k]) for k in range(3))
    distance = np.sqrt(sum(axis * axis for axis in away))
    beam *= np.clip((along / np.maximum(distance, 0.1) - 0.72) * 4, 0, 1) ** 2
    for c in range(3):
        light = street * np.float32(_LAMP_GAIN * _LAMP_RGB[c])
        light += beam * np.float32(_HEADLIGHT_GAIN * _HEADLIGHT_RGB[c])
        light *= np.float32(scene.light.lamp)
        parts[c] += light.repeat(2, axis=0)[:height].repeat(2, axis=1)[:, :width]


def _falloff(
    lamp: Float, xyz: list[Float32], normals: list[Float32], both: npt.NDArray[np.bool_]
) -> Float32:
    to_lamp = [np.float32(lamp[k]) - xyz[k] for k in range(3)]
    square = to_lamp[0] ** 2 + to_lamp[1] ** 2 + to_lamp[2] ** 2
    cosine = normals[0] * to_lamp[0] + normals[1] * to_lamp[1] + normals[2] * to_lamp[2]
    np.abs(cosine * np.float32(0.45), out=cosine, where=both)
    square += np.float32(0.5)
    cosine = np.maximum(cosine, 0)
    cosine /= square * np.sqrt(square)
    return np.asarray(cosine)


def _sky(ray: list[Float32], light: Light) -> Float32:
    x, y, z = ray
    scale = 1 / np.maximum(np.sqrt(x * x + y * y + z * z) + z, np.float32(1e-3))
    cell = np.float32((SKY_SIZE - 1) / (2 * SKY_REACH))
    u, v = ((a * scale + np.float32(SKY_REACH)) * cell for a in (x, y))
    border = cv2.BORDER_REPLICATE
    return np.asarray(cv2.remap(light.sky_picture, u, v, cv2.INTER_LINEAR, borderMode=border))


def _blur(radiance: Float32, depth: Float32, slopes: Float32, shift: Float) -> Float32:
    """Average along the way that each pixel's surface moves while the shutter is open.

    :param shift: (3,) of the camera meanwhile, in its own frame.
    """
    height, width = depth.shape
    nearness = 1 / np.where(depth > 0, depth, np.inf)
    flow = [
        sum(axis * np.float32(s) for axis, s in zip(row, shift, strict=True)) * nearness
        for row in slopes
    ]
    x, y = (
        np.arange(width, dtype=np.float32)[None, :],
        np.arange(height, dtype=np.float32)[:, None],
    )
    total = np.zeros_like(radiance)
    for share in np.linspace(-0.5, 0.5, _BLUR_TAPS, dtype=np.float32):
        total += cv2.remap(
            radiance,
            x + share * flow[0],
            y + share * flow[1],
            cv2.INTER_LINEAR,
            borderMode=cv2.BORDER_REPLICATE,
        )
    return np.asarray(total / _BLUR_TAPS, np.float32)


def _expose(radiance: Float32, scene: Scene, rng: np.random.Generator) -> Image:
    """Veil, bloom, exposure, photon and read noise, and the camera's tone curve."""
    veil = np.float32(scene.light.veil)
    mean = np.array(cv2.mean(radiance)[:3], np.float32)
    radiance = radiance + veil * (mean - radiance)
    if scene.light.lamp > 0:
        small = cv2.resize(radiance, None, fx=0.25, fy=0.25, interpolation=cv2.INTER_AREA)
        over = cv2.GaussianBlur(np.clip(small - 0.8, 0, 6), (0, 0), 5)
        radiance = radiance + 0.2 * cv2.resize(over, radiance.shape[1::-1])
    signal = radiance * np.float32(2.0**scene.condition.exposure_ev)
    if scene.condition.noise > 0:
        electrons = scene.light.electrons / scene.condition.noise**2
        read = 2.0 / electrons
        deviation = np.sqrt(
            np.maximum(signal, 0) * np.float32(1 / electrons) + np.float32(read**2)
        )
        signal = signal + deviation * rng.standard_normal(signal.shape, np.float32)
    step = np.clip(signal, 0, _SATURATED - 1 / _TONE_STEPS) * np.float32(_TONE_STEPS)
    return np.asarray(_TONE[step.astype(np.uint16)])
