// What pipelines/data/native_pixels.py calls. Images are bytes [height, width, 3] without gaps; the caller checks sizes.
#pragma once

#include <cstdint>

extern "C" {

// Decodes rows [top, bottom) and columns [left, right) of a JPEG file's image at 1/times of its sides (1, 2, 4 or 8)
// into out; height and width are the whole image's at full size. 0: well; 1: the file was not, or is not that image.
int agmm_decode_box(const uint8_t *file, int64_t size, int64_t height, int64_t width, int64_t times, int64_t top,
                    int64_t bottom, int64_t left, int64_t right, uint8_t *out);

// The mean colour of what each of resolution x resolution equal parts of a box covers, borders weighted by their share.
// The box is in pixels, with fractions, inside the image, and has at least resolution of them a side.
void agmm_shrink(const uint8_t *image, int64_t height, int64_t width, double top, double left, double box_height,
                 double box_width, int64_t resolution, uint8_t *out);
}
