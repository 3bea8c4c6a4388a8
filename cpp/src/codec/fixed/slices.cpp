#include "codec/fixed/slices.hpp"

#include <algorithm>
#include <atomic>
#include <cstring>

#include "codec/frame/crc32c.hpp"
#include "codec/frame/layout.hpp"
#include "codec/kernels/dispatch.hpp"
#include "support/pool.hpp"
#include "support/stop.hpp"

namespace orbitsplit::slices {

namespace {

// Bytes of the array in a slice: the slice and its encoded form stay in the L1 and L2 caches. Non-temporal stores were
// slower, also for arrays of 10 MB.
constexpr std::size_t slice_bytes = std::size_t{1} << 15;

constexpr std::size_t checked_slices = 16;  // between two checks for a stop: 0.5 MB

bool has_scales(CodecKind codec) { return codec == CodecKind::int8 || codec == CodecKind::int4; }

// Divides the array into slices and locates the scales and codes of its elements.
class Slicing {
  public:
    explicit Slicing(const FrameInfo& info)
        : info_(info),
          rows_(layout::rows_of(info.shape)),
          elements_(rows_.count * rows_.length),
          group_(has_scales(info.codec) ? info.parameter : layout::smallest_group),
          // If no group ends early at the end of a row, rows do not matter: the array may be divided between any
          // groups.
          is_flat_(!has_scales(info.codec) || rows_.count == 1 || rows_.length % group_ == 0) {
        const std::size_t unit = std::max<std::size_t>(1, is_flat_ ? group_ : rows_.length);
        const std::size_t wanted = slice_bytes / item_bytes(info.dtype);
        step_ = std::max<std::size_t>(1, wanted / unit) * unit;
    }

    std::size_t count() const { return (elements_ + step_ - 1) / step_; }
    std::size_t element_at(std::size_t slice) const { return std::min(elements_, slice * step_); }

    std::size_t array_at(std::size_t element) const { return element * item_bytes(info_.dtype); }

    std::size_t scale_at(std::size_t element) const {
        if (!has_scales(info_.codec) || elements_ == 0) return 0;
        return is_flat_ ? (element + group_ - 1) / group_ * 2
                        : element / rows_.length * layout::groups_per_row(rows_, group_) * 2;
    }

    std::size_t code_at(std::size_t element) const {
        const std::size_t first = scale_at(elements_);
        switch (info_.codec) {
            case CodecKind::bf16:
                return first + element * 2;
            case CodecKind::int8:
                return first + element;
            case CodecKind::int4:
                return first + (is_flat_ ? (element + 1) / 2
                                         : element / rows_.length * layout::packed_row_bytes(rows_));
            default:
                return first + array_at(element);
        }
    }

    layout::Rows rows_between(std::size_t element, std::size_t end) const {
        return is_flat_ ? layout::Rows{1, end - element}
                        : layout::Rows{(end - element) / rows_.length, rows_.length};
    }

  private:
    const FrameInfo& info_;
    layout::Rows rows_;
    std::size_t elements_;
    std::size_t group_;
    bool is_flat_;
    std::size_t step_;
};

bool encode_slice(const std::byte* data, const FrameInfo& info, const Slicing& slicing, std::byte* payload,
                  std::size_t element, std::size_t end) {
    const kernels::Kernels& active = kernels::active();
    const auto dtype = static_cast<std::size_t>(info.dtype);
    const std::byte* in = data + slicing.array_at(element);
    std::byte* scales = payload + slicing.scale_at(element);
    std::byte* codes = payload + slicing.code_at(element);
    const layout::Rows rows = slicing.rows_between(element, end);
    switch (info.codec) {
        case CodecKind::bf16:
            active.convert->to_bf16[dtype](in, end - element, codes);
            return true;
        case CodecKind::int8:
            return active.groups->quantise_int8[dtype](in, rows, info.parameter, scales, codes);
        case CodecKind::int4:
            return active.groups->quantise_int4[dtype](in, rows, info.parameter, scales, codes);
        default:
            std::memcpy(codes, in, slicing.array_at(end - element));
            return true;
    }
}

bool decode_slice(std::byte* data, const FrameInfo& info, const Slicing& slicing, const std::byte* payload,
                  std::size_t element, std::size_t end) {
    const kernels::Kernels& active = kernels::active();
    const auto dtype = static_cast<std::size_t>(info.dtype);
    std::byte* out = data + slicing.array_at(element);
    const std::byte* scales = payload + slicing.scale_at(element);
    const std::byte* codes = payload + slicing.code_at(element);
    const layout::Rows rows = slicing.rows_between(element, end);
    switch (info.codec) {
        case CodecKind::bf16:
            active.convert->from_bf16[dtype](codes, end - element, out);
            return true;
        case CodecKind::int8:
            return active.groups->dequantise_int8[dtype](scales, codes, rows, info.parameter, out);
        case CodecKind::int4:
            return active.groups->dequantise_int4[dtype](scales, codes, rows, info.parameter, out);
        default:
            std::memcpy(out, codes, slicing.array_at(end - element));
            return true;
    }
}

// The checksums of the scales and of the codes of consecutive slices.
struct Part {
    std::uint32_t scales = 0;
    std::uint32_t codes = 0;
};

// Adds the scales and codes of the elements [element, end) to the checksums.
void add(Part& part, const Slicing& slicing, const std::byte* payload, std::size_t element, std::size_t end) {
    const auto between = [&](std::size_t first, std::size_t last) {
        return std::span(payload + first, last - first);
    };
    part.scales = crc32c(between(slicing.scale_at(element), slicing.scale_at(end)), part.scales);
    part.codes = crc32c(between(slicing.code_at(element), slicing.code_at(end)), part.codes);
}

// `elements` has one more number than there are parts: where each begins, and the end of the last one.
std::uint32_t combine(std::span<const Part> parts, const std::size_t* elements, const Slicing& slicing,
                      std::uint32_t checksum) {
    for (std::size_t i = 0; i < parts.size(); ++i)
        checksum = crc32c_combine(checksum, parts[i].scales,
                                  slicing.scale_at(elements[i + 1]) - slicing.scale_at(elements[i]));
    for (std::size_t i = 0; i < parts.size(); ++i)
        checksum = crc32c_combine(checksum, parts[i].codes,
                                  slicing.code_at(elements[i + 1]) - slicing.code_at(elements[i]));
    return checksum;
}

// More parts than threads, because other programs may delay a thread.
std::size_t most_parts(int threads) { return threads == 1 ? 1 : 4 * static_cast<std::size_t>(threads); }

// Calls work(part, element, end) for every slice, those of a part in order. Returns the frame's checksum.
template <class Work>
std::uint32_t for_each_slice(const Slicing& slicing, std::uint32_t header_checksum,
                             const Execution& execution, Arena& memory, Work work) {
    const std::size_t count = std::min(slicing.count(), most_parts(execution.threads));
    const std::span parts(memory.take<Part>(count), count);
    std::ranges::fill(parts, Part{});
    auto* elements = memory.take<std::size_t>(count + 1);
    for (std::size_t i = 0; i <= count; ++i) elements[i] = slicing.element_at(slicing.count() * i / count);
    pool::run_parts(count, execution.threads, [&](std::size_t i) {
        for (std::size_t slice = slicing.count() * i / count; slice < slicing.count() * (i + 1) / count;
             ++slice) {
            if (slice % checked_slices == 0) throw_if_stopped(execution);
            work(parts[i], slicing.element_at(slice), slicing.element_at(slice + 1));
        }
    });
    return combine(parts, elements, slicing, header_checksum);
}

}  // namespace

bool supports(CodecKind codec) {
    return codec == CodecKind::raw || codec == CodecKind::bf16 || has_scales(codec);
}

std::size_t memory_bytes(int threads) {
    const std::size_t parts = most_parts(threads);
    return Arena::padded(parts * sizeof(Part)) + Arena::padded((parts + 1) * sizeof(std::size_t));
}

std::optional<std::uint32_t> encode(const std::byte* data, const FrameInfo& info, std::byte* payload,
                                    std::uint32_t header_checksum, const Execution& execution,
                                    Arena& memory) {
    const Slicing slicing(info);
    if (slicing.count() == 0) return header_checksum;
    // A decode step's row: one checksum, nothing to combine.
    if (slicing.count() == 1) {
        if (!encode_slice(data, info, slicing, payload, 0, slicing.element_at(1))) return std::nullopt;
        return crc32c({payload, info.payload_bytes}, header_checksum);
    }
    std::atomic<bool> is_finite = true;
    const std::uint32_t checksum = for_each_slice(
        slicing, header_checksum, execution, memory, [&](Part& part, std::size_t element, std::size_t end) {
            if (encode_slice(data, info, slicing, payload, element, end))
                add(part, slicing, payload, element, end);
            else
                is_finite = false;
        });
    return is_finite ? std::optional(checksum) : std::nullopt;
}

Outcome decode(std::byte* data, const FrameInfo& info, const std::byte* payload,
               std::uint32_t header_checksum, const Execution& execution, Arena& memory) {
    const Slicing slicing(info);
    if (slicing.count() == 0) return {header_checksum, true};
    if (slicing.count() == 1)
        return {crc32c({payload, info.payload_bytes}, header_checksum),
                decode_slice(data, info, slicing, payload, 0, slicing.element_at(1))};
    std::atomic<bool> is_valid = true;
    const std::uint32_t checksum = for_each_slice(
        slicing, header_checksum, execution, memory, [&](Part& part, std::size_t element, std::size_t end) {
            add(part, slicing, payload, element, end);
            if (!decode_slice(data, info, slicing, payload, element, end)) is_valid = false;
        });
    return {checksum, is_valid};
}

}  // namespace orbitsplit::slices
