// A box of a JPEG file: libjpeg-turbo transforms and colours only the blocks that it needs. Every bit before the box's
// last row has to be read all the same; those after it are not.
#include <csetjmp>
#include <cstddef>
#include <cstdio>
#include <cstring>

#include <jpeglib.h>

#include "pixels.h"

namespace {

constexpr JDIMENSION kRows = 16;  // the most that a row of blocks has at once

struct Errors {
    jpeg_error_mgr manager;
    jmp_buf back;
};

void give_up(j_common_ptr info) { std::longjmp(reinterpret_cast<Errors *>(info->err)->back, 1); }

void say_nothing(j_common_ptr) {}

// Where the columns begin in a row that libjpeg gives. Interpolated colour lacks a neighbour at a cut: one more pixel
// on each side makes the box's own the same as in a whole image.
JDIMENSION keep_columns(jpeg_decompress_struct &info, JDIMENSION left, JDIMENSION right) {
    JDIMENSION first = left > 0 ? left - 1 : 0;
    JDIMENSION last = right < info.output_width ? right + 1 : right;
    JDIMENSION count = last - first;
    if (count < info.output_width) jpeg_crop_scanline(&info, &first, &count);
    return left - first;
}

void read_rows(jpeg_decompress_struct &info, JDIMENSION count, size_t skipped, size_t width, uint8_t *out) {
    auto pool = reinterpret_cast<j_common_ptr>(&info);
    JSAMPARRAY rows = info.mem->alloc_sarray(pool, JPOOL_IMAGE, info.output_width * 3, kRows);
    while (count > 0) {
        JDIMENSION got = jpeg_read_scanlines(&info, rows, count < kRows ? count : kRows);
        for (JDIMENSION row = 0; row < got; ++row, out += width) std::memcpy(out, rows[row] + skipped, width);
        count -= got;
    }
}

}  // namespace

int agmm_decode_box(const uint8_t *file, int64_t size, int64_t height, int64_t width, int64_t times, int64_t top,
                    int64_t bottom, int64_t left, int64_t right, uint8_t *out) {
    jpeg_decompress_struct info;
    Errors errors;
    info.err = jpeg_std_error(&errors.manager);
    errors.manager.error_exit = give_up;
    errors.manager.output_message = say_nothing;
    jpeg_create_decompress(&info);
    // No object with a destructor lives between here and the jump.
    if (setjmp(errors.back) != 0) {
        jpeg_destroy_decompress(&info);
        return 1;
    }
    jpeg_mem_src(&info, file, static_cast<unsigned long>(size));
    jpeg_read_header(&info, TRUE);
    bool ours = info.image_height == height && info.image_width == width;
    if (ours) {
        info.scale_num = 1;
        info.scale_denom = static_cast<unsigned>(times);
        info.out_color_space = JCS_RGB;
        jpeg_start_decompress(&info);
        size_t skipped = keep_columns(info, static_cast<JDIMENSION>(left), static_cast<JDIMENSION>(right));
        if (top > 0) jpeg_skip_scanlines(&info, static_cast<JDIMENSION>(top));
        read_rows(info, static_cast<JDIMENSION>(bottom - top), 3 * skipped, 3 * static_cast<size_t>(right - left), out);
    }
    bool remarked = info.err->num_warnings > 0;
    jpeg_destroy_decompress(&info);
    return ours && !remarked ? 0 : 1;
}
