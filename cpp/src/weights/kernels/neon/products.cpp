#include "weights/kernels/neon/rows.hpp"

namespace orbitsplit::weights {

namespace {

// Lanes 0 to 3 and 4 to 7.
struct Sums {
    float32x4_t lower = vdupq_n_f32(0.0F);
    float32x4_t upper = vdupq_n_f32(0.0F);

    void add(float32x4_t to_lower, float32x4_t to_upper) {
        lower = vaddq_f32(lower, to_lower);
        upper = vaddq_f32(upper, to_upper);
    }

    float total() const {
        const float32x4_t x = vaddq_f32(lower, upper);
        const float32x2_t y = vadd_f32(vget_low_f32(x), vget_high_f32(x));
        return vget_lane_f32(y, 0) + vget_lane_f32(y, 1);
    }
};

inline float quiet(float value) { return value == value ? value : __builtin_nanf(""); }

struct Int8 {
    static const std::byte* codes(const std::byte* row, std::size_t, std::size_t g) {
        return row + g * int8_group_bytes + 2;
    }
    static Words expand(const std::byte* codes) { return expand_int8(codes); }
    static float scale(const std::byte* row, std::size_t g) {
        return single_from_half(load<std::uint16_t>(row + g * int8_group_bytes));
    }
};

struct Int4 {
    static std::size_t row_bytes(std::size_t groups) { return int4_row_bytes(groups); }
    static const std::byte* codes(const std::byte* row, std::size_t groups, std::size_t g) {
        return row + int4_codes_at(groups) + g * int4_code_bytes;
    }
    static Words expand(const std::byte* codes) { return expand_int4(codes); }
    static float scale(const std::byte* row, std::size_t g) {
        return static_cast<float>(static_cast<std::uint8_t>(row[int4_scales_at + g]));
    }
};

// Scales and minima are where int4 has them.
struct Int5 : Int4 {
    static std::size_t row_bytes(std::size_t groups) { return int5_row_bytes(groups); }
    static const std::byte* codes(const std::byte* row, std::size_t groups, std::size_t g) {
        return row + int4_codes_at(groups) + g * int5_code_bytes;
    }
    static Words expand(const std::byte* codes) { return expand_int5(codes); }
};

// Sums of the products of codes k to k + 7 and of those 16 further: four lanes of pairs.
inline float32x4_t four_lanes(const Words& q, std::size_t half, const std::int16_t* x) {
    const int16x8_t x_first = vld1q_s16(x + 8 * half);
    const int16x8_t x_second = vld1q_s16(x + 16 + 8 * half);
    const int16x8_t first = q.part[half];
    const int16x8_t second = q.part[half + 2];
    const int32x4_t a = vmlal_s16(vmull_s16(vget_low_s16(first), vget_low_s16(x_first)), vget_low_s16(second),
                                  vget_low_s16(x_second));
    const int32x4_t b = vmlal_high_s16(vmull_high_s16(first, x_first), second, x_second);
    return vcvtq_f32_s32(vpaddq_s32(a, b));
}

// Loops over rows are unrolled, so that their sums stay in registers also at -O2.
template <class Format, std::size_t Rows>
inline void sum_row(const std::byte* row, std::size_t groups, Inputs x, Sums* sums) {
    Sums in_lanes[Rows];
    const std::int16_t* words = x.codes;
    for (std::size_t g = 0; g < groups; ++g, words += group * Rows) {
        const Words q = Format::expand(Format::codes(row, groups, g));
        const float of_weights = Format::scale(row, g);
#pragma GCC unroll 8
        for (std::size_t r = 0; r < Rows; ++r) {
            const float32x4_t scale = vdupq_n_f32(of_weights * x.scales[scale_at(g, r, Rows)]);
            const std::int16_t* of_x = words + r * group;
            in_lanes[r].add(vmulq_f32(scale, four_lanes(q, 0, of_x)),
                            vmulq_f32(scale, four_lanes(q, 1, of_x)));
        }
    }
#pragma GCC unroll 8
    for (std::size_t r = 0; r < Rows; ++r) sums[r] = in_lanes[r];
}

inline float32x4_t floats_of_bytes(uint16x4_t words) { return vcvtq_f32_u32(vmovl_u16(words)); }

// For int4 and int5: the sum of minima times sums of x. Reads into the codes that follow the minima.
inline float sum_of_minima(const std::byte* row, std::size_t groups, Inputs x, std::size_t r) {
    Sums sums;
    for (std::size_t g = 0; g < groups; g += lanes) {
        const auto* bytes = reinterpret_cast<const std::uint8_t*>(row + int4_minima_at(groups) + g);
        const uint16x8_t minima = vmovl_u8(vld1_u8(bytes));
        const float* of_x = x.sums + scale_at(g, r, x.rows);
        sums.add(vmulq_f32(floats_of_bytes(vget_low_u16(minima)), vld1q_f32(of_x)),
                 vmulq_f32(floats_of_bytes(vget_high_u16(minima)), vld1q_f32(of_x + 4)));
    }
    return sums.total();
}

template <std::size_t Rows>
struct MultiplyInt8 {
    static void run(const std::byte* weights, std::size_t outputs, std::size_t groups, Inputs x, float* y,
                    std::size_t stride) {
        Sums sums[Rows];
        for (std::size_t n = 0; n < outputs; ++n, weights += int8_row_bytes(groups)) {
            sum_row<Int8, Rows>(weights, groups, x, sums);
            for (std::size_t r = 0; r < Rows; ++r) y[r * stride + n] = quiet(sums[r].total());
        }
    }
};

template <class Format, std::size_t Rows>
struct MultiplyWithMinima {
    static void run(const std::byte* weights, std::size_t outputs, std::size_t groups, Inputs x, float* y,
                    std::size_t stride) {
        Sums sums[Rows];
        for (std::size_t n = 0; n < outputs; ++n, weights += Format::row_bytes(groups)) {
            const float scale = load<float>(weights);
            const float minimum = load<float>(weights + 4);
            sum_row<Format, Rows>(weights, groups, x, sums);
            for (std::size_t r = 0; r < Rows; ++r) {
                const float subtracted = minimum * sum_of_minima(weights, groups, x, r);
                y[r * stride + n] = quiet(scale * sums[r].total() - subtracted);
            }
        }
    }
};

template <std::size_t Rows>
using MultiplyInt4 = MultiplyWithMinima<Int4, Rows>;
template <std::size_t Rows>
using MultiplyInt5 = MultiplyWithMinima<Int5, Rows>;

}  // namespace

constinit const Products neon::products = {
    {by_rows<MultiplyInt8>, by_rows<MultiplyInt4>, by_rows<MultiplyInt5>}};

}  // namespace orbitsplit::weights
