// Selection of the largest magnitudes, eight keys at a time, for instruction sets without masked loads and stores. All in
// an anonymous namespace, so that each file has its own copy.
//
// A `Set` has a vector of eight signed 32-bit numbers, Keys, with
//   load<bytes>(in)                      eight elements; of two bytes each in the upper halves
//   load(words), store(keys, words)      numbers in memory
//   magnitude(keys)                      without the sign bit
//   larger(a, b), largest(keys)          of two vectors; of the lanes of one
//   is_above(keys, limit), mask_of(is)   all ones where a key is larger; a bit for each lane
//   minus(a, b), sum(keys), count(mask)
//   append(keys, mask, words)            the lanes of the mask in order; writes eight words
//   store_bf16(keys, out)                float32 bits to the nearest finite bfloat16, eight of them
//   store_upper(keys, out)               the upper halves
//   place<bytes>(values, mask, out)      the reverse of both: values at the lanes of the mask, zeros elsewhere
#pragma once

#include "codec/kernels/kernels.hpp"
#include "codec/kernels/vector/gaps.hpp"
#include "codec/kernels/vector/octets.hpp"

namespace orbitsplit::kernels {

namespace {

// Above all keys of finite elements.
constexpr std::int32_t past_keys = 0x7FFFFFFF;

// Keys rank magnitudes in 31 bits, as in scalar/select.cpp. Neighbouring rows are similar: the threshold of a row is
// first sought within `reach` of that of the previous row, some 12 %.
struct Float32 {
    static constexpr std::size_t bytes = 4;
    static constexpr std::int32_t infinite_key = 0x7F800000;
    static constexpr std::int32_t reach = 1 << 20;
};

struct Float16 {
    static constexpr std::size_t bytes = 2;
    static constexpr std::int32_t infinite_key = 0x7C000000;
    static constexpr std::int32_t reach = 1 << (16 + 10 - 3);
};

struct BFloat16 {
    static constexpr std::size_t bytes = 2;
    static constexpr std::int32_t infinite_key = 0x7F800000;
    static constexpr std::int32_t reach = 1 << (16 + 7 - 3);
};

inline unsigned first_lanes(std::size_t count) { return count >= octet ? 0xFF : (1U << count) - 1; }

// The `missing`-th largest of `count` keys, which is in [low, high). `from_low` and `from_high` keys are at least as
// large as the ends of that range.
struct Search {
    std::int32_t* keys;
    std::size_t count;
    std::size_t missing;
    std::int32_t low;
    std::int32_t high;
    std::size_t from_low;
    std::size_t from_high = 0;
};

// The keys above `key` are kept, and of those equal to it the first `ties`.
struct Threshold {
    std::int32_t key;
    std::size_t ties;
};

// Where all keys of a value are kept, they are above the number below it.
inline Threshold threshold_at(std::int32_t key, std::size_t ties, std::size_t equals) {
    return ties == equals ? Threshold{key - 1, 0} : Threshold{key, ties};
}

template <class Set>
struct Selection {
    using Keys = typename Set::Keys;

    // Fewer than eight keys; the others are below all.
    static Keys load_rest(const std::int32_t* keys, std::size_t count) {
        std::int32_t padded[octet] = {-1, -1, -1, -1, -1, -1, -1, -1};
        __builtin_memcpy(padded, keys, (count < octet ? count : octet) * sizeof *keys);
        return Set::load(padded);
    }

    static std::size_t append_rest(Keys keys, unsigned mask, std::int32_t* out) {
        std::int32_t packed[octet];
        Set::append(keys, mask, packed);
        __builtin_memcpy(out, packed, Set::count(mask) * sizeof *out);
        return Set::count(mask);
    }

    static std::size_t count_above(const Search& search, std::int32_t limit) {
        Keys sum{};
        std::size_t i = 0;
        for (; i + octet <= search.count; i += octet)
            sum = Set::minus(sum, Set::is_above(Set::load(search.keys + i), limit));
        if (i < search.count)
            sum = Set::minus(sum, Set::is_above(load_rest(search.keys + i, search.count - i), limit));
        return static_cast<std::size_t>(Set::sum(sum));
    }

    // Drops the keys outside the range.
    static void narrow(Search& search) {
        std::size_t count = 0;
        const auto in_range = [&](Keys keys) {
            return Set::mask_of(Set::is_above(keys, search.low - 1)) &
                   ~Set::mask_of(Set::is_above(keys, search.high - 1));
        };
        std::size_t i = 0;
        for (; i + octet <= search.count; i += octet) {
            const Keys keys = Set::load(search.keys + i);
            const unsigned mask = in_range(keys);
            Set::append(keys, mask, search.keys + count);
            count += Set::count(mask);
        }
        if (i < search.count) {
            const Keys keys = load_rest(search.keys + i, search.count - i);
            count += append_rest(keys, in_range(keys) & first_lanes(search.count - i), search.keys + count);
        }
        search.missing -= search.from_high;
        search.count = search.from_low = count;
        search.from_high = 0;
    }

    // For at most sixteen keys: tries each.
    static Threshold pick(const Search& search) {
        const Keys first = load_rest(search.keys, search.count);
        const Keys second = search.count > octet ? load_rest(search.keys + octet, search.count - octet)
                                                 : load_rest(search.keys, 0);
        const auto count = [&](std::int32_t limit) {
            return Set::count(Set::mask_of(Set::is_above(first, limit))) +
                   Set::count(Set::mask_of(Set::is_above(second, limit)));
        };
        for (std::size_t i = 0;; ++i) {
            const std::int32_t key = search.keys[i];
            const std::size_t above = count(key);
            const std::size_t from = count(key - 1);
            if (above < search.missing && search.missing <= from)
                return threshold_at(key, search.missing - above, from - above);
        }
    }

    // Bisects the range; modifies the keys.
    static Threshold find_threshold(Search search) {
        while (search.high - search.low > 1) {
            const std::size_t in_range = search.from_low - search.from_high;
            if (in_range <= 2 * octet || 2 * in_range <= search.count) narrow(search);
            if (search.count <= 2 * octet) return pick(search);
            const std::int32_t middle = search.low + (search.high - search.low) / 2;
            const std::size_t from_middle = count_above(search, middle - 1);
            if (from_middle >= search.missing) {
                search.low = middle;
                search.from_low = from_middle;
            } else {
                search.high = middle;
                search.from_high = from_middle;
            }
        }
        return threshold_at(search.low, search.missing - search.from_high,
                            search.from_low - search.from_high);
    }

    // Eight elements of a row; zeros beyond its end.
    template <class Element>
    static Keys load_elements(const std::byte* in, std::size_t count) {
        if (count >= octet) return Set::template load<Element::bytes>(in);
        std::byte padded[octet * Element::bytes] = {};
        __builtin_memcpy(padded, in, count * Element::bytes);
        return Set::template load<Element::bytes>(padded);
    }

    // The result of one pass over a row: the largest key, and how many keys are in a range and above it.
    struct Survey {
        Keys largest{};
        std::size_t in_range = 0;
        std::size_t above_range = 0;
    };

    // Keys go to `keys`, and those in [low, high) also to `near`.
    template <class Element>
    static Survey survey(const std::byte* in, std::size_t length, std::int32_t low, std::int32_t high,
                         std::int32_t* keys, std::int32_t* near) {
        Survey found;
        const auto look = [&](Keys here, unsigned given) {
            const unsigned from_high = Set::mask_of(Set::is_above(here, high - 1)) & given;
            found.largest = Set::larger(found.largest, here);
            found.above_range += Set::count(from_high);
            return Set::mask_of(Set::is_above(here, low - 1)) & ~from_high & given;
        };
        std::size_t i = 0;
        for (; i + octet <= length; i += octet) {
            const Keys here = Set::magnitude(Set::template load<Element::bytes>(in + i * Element::bytes));
            const unsigned in_range = look(here, 0xFF);
            Set::store(here, keys + i);
            Set::append(here, in_range, near + found.in_range);
            found.in_range += Set::count(in_range);
        }
        if (i < length) {
            const Keys here = Set::magnitude(load_elements<Element>(in + i * Element::bytes, length - i));
            const unsigned given = first_lanes(length - i);
            found.in_range += append_rest(here, look(here, given), near + found.in_range);
            append_rest(here, given, keys + i);
        }
        return found;
    }

    // The lowest `ties` of the lanes in a mask, all if there are fewer.
    static unsigned take_lowest(unsigned mask, std::size_t& ties) {
        unsigned taken = 0;
        for (; mask != 0 && ties > 0; mask &= mask - 1, --ties) taken |= mask & (0U - mask);
        return taken;
    }

    // Marks the kept elements of a row and collects them in `chosen`.
    template <class Element>
    static void mark_kept(const std::byte* in, std::size_t length, Threshold threshold, std::byte* bitmap,
                          std::int32_t* chosen) {
        const auto kept_of = [&](Keys elements) {
            const Keys keys = Set::magnitude(elements);
            const unsigned above = Set::mask_of(Set::is_above(keys, threshold.key));
            if (threshold.ties == 0) return above;
            const unsigned from = Set::mask_of(Set::is_above(keys, threshold.key - 1));
            return above | take_lowest(from & ~above, threshold.ties);
        };
        std::size_t i = 0;
        for (; i + octet <= length; i += octet) {
            const Keys elements = Set::template load<Element::bytes>(in + i * Element::bytes);
            const unsigned mask = kept_of(elements);
            bitmap[i / octet] = static_cast<std::byte>(mask);
            Set::append(elements, mask, chosen);
            chosen += Set::count(mask);
        }
        if (i == length) return;
        const Keys elements = load_elements<Element>(in + i * Element::bytes, length - i);
        const unsigned mask = kept_of(elements) & first_lanes(length - i);
        bitmap[i / octet] = static_cast<std::byte>(mask);
        append_rest(elements, mask, chosen);
    }

    // Elements in 16 bits each.
    template <class Element>
    static void shorten(const std::int32_t* elements, std::size_t count, std::byte* out) {
        const auto store = [](Keys eight, std::byte* to) {
            if constexpr (Element::bytes == 4)
                Set::store_bf16(eight, to);
            else
                Set::store_upper(eight, to);
        };
        std::size_t i = 0;
        for (; i + octet <= count; i += octet) store(Set::load(elements + i), out + 2 * i);
        if (i == count) return;
        std::byte last[2 * octet];
        store(load_rest(elements + i, count - i), last);
        __builtin_memcpy(out + 2 * i, last, 2 * (count - i));
    }

    template <class Element>
    static bool select_largest(const std::byte* in, layout::Rows rows, std::size_t kept,
                               std::uint32_t* scratch, std::byte* values, std::byte* bitmaps) {
        auto* keys = reinterpret_cast<std::int32_t*>(scratch);
        std::int32_t* near = keys + rows.length;
        std::int32_t low = past_keys;
        std::int32_t high = past_keys;
        for (std::size_t row = 0; row < rows.count; ++row) {
            const std::byte* here = in + row * rows.length * Element::bytes;
            const Survey found = survey<Element>(here, rows.length, low, high, keys, near);
            const std::int32_t largest = Set::largest(found.largest);
            if (largest >= Element::infinite_key) return false;
            const bool is_near = found.above_range < kept && kept <= found.above_range + found.in_range;
            const Search whole{keys, rows.length, kept, 0, largest + 1, rows.length};
            const Search around{near, found.in_range, kept - found.above_range, low, high, found.in_range};
            const Threshold threshold = find_threshold(is_near ? around : whole);
            low = threshold.key > Element::reach ? threshold.key - Element::reach : 0;
            high = threshold.key + Element::reach;
            mark_kept<Element>(here, rows.length, threshold, bitmaps + row * bitmap_row_bytes(rows), near);
            shorten<Element>(near, kept, values + 2 * row * kept);
        }
        return true;
    }

    static bool keeps_exactly(const std::byte* bitmap, std::size_t length, std::size_t kept) {
        const std::size_t bytes = bitmap_row_bytes({1, length});
        std::size_t count = 0;
        for (std::size_t i = 0; i < bytes; i += 8) {
            unsigned long long bits = 0;
            __builtin_memcpy(&bits, bitmap + i, bytes - i < sizeof bits ? bytes - i : sizeof bits);
            count += static_cast<std::size_t>(__builtin_popcountll(bits));
        }
        const bool reaches_past_end =
            length % octet != 0 && static_cast<unsigned>(bitmap[bytes - 1]) >> (length % octet) != 0;
        return count == kept && !reaches_past_end;
    }

    // `left` values may be read.
    template <class Element>
    static void place_row(const std::byte* values, std::size_t left, const std::byte* bitmap,
                          std::size_t length, std::byte* out) {
        for (std::size_t i = 0; i < length; i += octet) {
            const auto mask = static_cast<unsigned>(bitmap[i / octet]);
            std::byte last[2 * octet] = {};
            if (left < octet) __builtin_memcpy(last, values, 2 * left);
            const std::byte* from = left < octet ? last : values;
            const std::size_t here = length - i;
            std::byte rest[octet * Element::bytes];
            Set::template place<Element::bytes>(from, mask, here < octet ? rest : out);
            if (here < octet) __builtin_memcpy(out, rest, here * Element::bytes);
            out += octet * Element::bytes;
            values += 2 * std::size_t{Set::count(mask)};
            left -= Set::count(mask);
        }
    }

    template <class Element>
    static bool place_by_bitmap(const std::byte* values, const std::byte* bitmaps, layout::Rows rows,
                                std::size_t kept, std::byte* out) {
        for (std::size_t row = 0; row < rows.count; ++row) {
            const std::byte* bitmap = bitmaps + row * bitmap_row_bytes(rows);
            if (!keeps_exactly(bitmap, rows.length, kept)) return false;
            place_row<Element>(values + 2 * row * kept, (rows.count - row) * kept, bitmap, rows.length,
                               out + row * rows.length * Element::bytes);
        }
        return true;
    }
};

// One gap after another: nothing for vectors to do.
template <std::size_t dtype>
bool place_by_gaps(const std::byte* values, const std::byte* gaps, std::size_t gap_bytes, layout::Rows rows,
                   std::size_t kept, std::byte* out) {
    return scalar::select.place_by_gaps[dtype](values, gaps, gap_bytes, rows, kept, out);
}

template <class Set>
constexpr Select make_select() {
    using All = Selection<Set>;
    return {
        {All::template select_largest<Float32>, All::template select_largest<Float16>,
         All::template select_largest<BFloat16>},
        gaps_of_bitmaps,
        {All::template place_by_bitmap<Float32>, All::template place_by_bitmap<Float16>,
         All::template place_by_bitmap<BFloat16>},
        {place_by_gaps<0>, place_by_gaps<1>, place_by_gaps<2>},
    };
}

}  // namespace

}  // namespace orbitsplit::kernels
