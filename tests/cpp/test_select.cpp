// The kernels of top-k of every instruction set against the scalar ones: values, bitmaps, gaps with any room, and back.
#include <bit>
#include <cstring>
#include <random>
#include <string>
#include <vector>

#include "check.hpp"
#include "codec/frame/layout.hpp"
#include "codec/kernels/dispatch.hpp"
#include "orbitsplit/codec.hpp"

using namespace orbitsplit;

namespace {

using Bytes = std::vector<std::byte>;

enum class Kind { normal, few_sizes, zeros, sparse };

// Rows of a dtype whose bits are the upper ones of float32 numbers, or all of them.
Bytes make_rows(std::size_t dtype, Kind kind, layout::Rows rows, unsigned seed) {
    std::mt19937 random(seed);
    std::normal_distribution<float> normal;
    const std::size_t item = dtype == 0 ? 4 : 2;
    Bytes out(rows.count * rows.length * item);
    for (std::size_t i = 0; i < rows.count * rows.length; ++i) {
        float x = normal(random);
        if (kind == Kind::few_sizes) x = static_cast<float>(static_cast<int>(random() % 5) - 2);
        if (kind == Kind::zeros || (kind == Kind::sparse && random() % 400 != 0))
            x = i % 2 == 0 ? 0.0F : -0.0F;
        const std::uint32_t bits = std::bit_cast<std::uint32_t>(x) >> (dtype == 0 ? 0 : 16);
        std::memcpy(out.data() + i * item, &bits, item);
    }
    return out;
}

struct Selected {
    bool is_finite;
    Bytes values;
    Bytes bitmaps;
};

Selected select(const kernels::Select& kernel, std::size_t dtype, const Bytes& in, layout::Rows rows,
                std::size_t kept) {
    std::vector<std::uint32_t> scratch(2 * rows.length);
    Selected result{false, Bytes(2 * kept * rows.count), Bytes(layout::bitmap_row_bytes(rows) * rows.count)};
    result.is_finite = kernel.select_largest[dtype](in.data(), rows, kept, scratch.data(),
                                                    result.values.data(), result.bitmaps.data());
    return result;
}

// The room for gaps is a block of its own, so that a sanitizer sees what is written beyond it.
void compare_gaps(const kernels::Select& fast, const Selected& given, layout::Rows rows, std::size_t limit) {
    Bytes slow_gaps(limit);
    Bytes fast_gaps(limit);
    const std::size_t size =
        kernels::scalar::select.gaps_of_bitmaps(given.bitmaps.data(), rows, slow_gaps.data(), limit);
    CHECK(fast.gaps_of_bitmaps(given.bitmaps.data(), rows, fast_gaps.data(), limit) == size);
    if (size < limit) CHECK(std::memcmp(slow_gaps.data(), fast_gaps.data(), size) == 0);
}

void compare_placed(const kernels::Select& fast, std::size_t dtype, const Selected& given, layout::Rows rows,
                    std::size_t kept) {
    const auto place = [&](const kernels::Select& kernel, std::size_t expected) {
        Bytes out(rows.count * rows.length * (dtype == 0 ? 4 : 2), std::byte{7});
        const bool is_placed = kernel.place_by_bitmap[dtype](given.values.data(), given.bitmaps.data(), rows,
                                                             expected, out.data());
        CHECK(is_placed == (expected == kept));
        if (!is_placed) out.clear();
        return out;
    };
    CHECK(place(fast, kept) == place(kernels::scalar::select, kept));
    place(fast, kept - 1);
    Bytes gaps(4 * rows.count * rows.length + 64);
    const std::size_t size = fast.gaps_of_bitmaps(given.bitmaps.data(), rows, gaps.data(), gaps.size());
    Bytes out(rows.count * rows.length * (dtype == 0 ? 4 : 2), std::byte{7});
    CHECK(fast.place_by_gaps[dtype](given.values.data(), gaps.data(), size, rows, kept, out.data()));
    CHECK(out == place(kernels::scalar::select, kept));
}

void compare(const kernels::Select& fast, std::size_t dtype, Kind kind, layout::Rows rows, std::size_t kept) {
    const Bytes in = make_rows(dtype, kind, rows, static_cast<unsigned>(rows.length + kept));
    const Selected slow = select(kernels::scalar::select, dtype, in, rows, kept);
    const Selected found = select(fast, dtype, in, rows, kept);
    CHECK(slow.is_finite && found.is_finite);
    CHECK(found.values == slow.values && found.bitmaps == slow.bitmaps);
    for (const std::size_t limit : {std::size_t{0}, std::size_t{1}, rows.count * kept, rows.count * kept + 1,
                                    slow.bitmaps.size(), rows.count * (kept + rows.length)})
        compare_gaps(fast, slow, rows, limit);
    compare_placed(fast, dtype, slow, rows, kept);
}

// Elements that are not finite are found wherever they are.
void test_not_finite(const kernels::Select& fast) {
    for (const std::size_t length : {1UL, 8UL, 21UL})
        for (std::size_t at = 0; at < length; ++at) {
            Bytes in = make_rows(0, Kind::normal, {1, length}, 1);
            const std::uint32_t bits = at % 2 == 0 ? 0xFF800000 : 0x7FC00001;
            std::memcpy(in.data() + 4 * at, &bits, sizeof bits);
            CHECK(!select(fast, 0, in, {1, length}, 1).is_finite);
        }
}

}  // namespace

int main() {
    for (const std::string& name : isas()) {
        set_isa(name);
        const kernels::Select& fast = *kernels::active().select;
        test_not_finite(fast);
        for (std::size_t dtype = 0; dtype < kernels::dtypes; ++dtype)
            for (const Kind kind : {Kind::normal, Kind::few_sizes, Kind::zeros, Kind::sparse})
                for (const std::size_t length : {1, 7, 8, 9, 16, 33, 64, 255, 600, 2049})
                    for (const std::size_t kept :
                         {std::size_t{1}, std::size_t{2}, length / 10, length / 3, length - 1, length})
                        if (kept > 0 && kept <= length) compare(fast, dtype, kind, {4, length}, kept);
    }
    return failures;
}
