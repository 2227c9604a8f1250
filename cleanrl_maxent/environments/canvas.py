"""Anti-aliased discs and lines on an image, with NumPy alone."""

import numpy as np


class Canvas:
    """A square image of the plane [-bound, bound]², y upwards; colours are (r, g, b) in 0 … 255."""

    def __init__(self, size, bound, background):
        """`size`: pixels of a side."""
        self.size, self.bound = size, bound
        self.pixels = np.full((size, size, 3), background, np.float32)

    def copy(self):
        other = Canvas(self.size, self.bound, 0)
        other.pixels = self.pixels.copy()
        return other

    def image(self):
        """`(size, size, 3)` uint8."""
        return np.round(self.pixels).astype(np.uint8)

    def points(self, low, high):
        """The pixels between two corners of the plane: their slices of the image, and their positions in the
        plane, `(rows, columns, 2)`."""
        scale = self.size / (2 * self.bound)
        left, bottom = np.floor((np.maximum(low, -self.bound) + self.bound) * scale).astype(int)
        right, top = np.ceil((np.minimum(high, self.bound) + self.bound) * scale).astype(int)
        rows, columns = slice(self.size - top, self.size - bottom), slice(left, right)
        x = (np.arange(self.size)[columns] + 0.5) / scale - self.bound
        y = self.bound - (np.arange(self.size)[rows] + 0.5) / scale
        return (rows, columns), np.stack(np.broadcast_arrays(x[None, :], y[:, None]), axis=-1)

    def paint(self, part, distance, color, opacity):
        """Colours the pixels of `part` inside a shape, with a soft edge; `distance`: to the edge, negative
        inside, `(rows, columns)`."""
        covered = opacity * np.clip(0.5 - distance * self.size / (2 * self.bound), 0, 1)[..., None]
        self.pixels[part] += covered * (np.asarray(color, np.float32) - self.pixels[part])

    def disc(self, center, radius, color, opacity=1.0):
        """Draws a filled disc; lengths are those of the plane."""
        margin = radius + 4 * self.bound / self.size
        part, points = self.points(np.subtract(center, margin), np.add(center, margin))
        self.paint(part, np.linalg.norm(points - center, axis=-1) - radius, color, opacity)

    def line(self, start, end, width, color, opacity=1.0):
        """Draws a line with round ends."""
        start, end = np.asarray(start, float), np.asarray(end, float)
        margin = width / 2 + 4 * self.bound / self.size
        part, points = self.points(np.minimum(start, end) - margin, np.maximum(start, end) + margin)
        along, direction = points - start, end - start
        share = np.clip(along @ direction / max(direction @ direction, 1e-12), 0, 1)
        distance = np.linalg.norm(along - share[..., None] * direction, axis=-1)
        self.paint(part, distance - width / 2, color, opacity)
