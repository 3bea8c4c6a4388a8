#include "codec/frame/encoding.hpp"

#include <algorithm>
#include <cmath>
#include <functional>
#include <stdexcept>
#include <string>
#include <string_view>

#include "codec/frame/layout.hpp"
#include "codec/kernels/elements.hpp"

namespace orbitsplit::encoding {

namespace {

constexpr std::string_view dtype_names[] = {"float32", "float16", "bfloat16"};

std::string describe(DType dtype, std::span<const std::int64_t> shape) {
    std::string text(dtype_names[static_cast<int>(dtype)]);
    text += " [";
    for (std::size_t axis = 0; axis < shape.size(); ++axis)
        text += (axis > 0 ? ", " : "") + std::to_string(shape[axis]);
    return text + "]";
}

void check_apart(std::span<const std::byte> written, std::span<const std::byte> read, std::string_view what) {
    if (written.empty() || read.empty()) return;
    const std::less<> before;
    if (before(written.data(), read.data() + read.size()) &&
        before(read.data(), written.data() + written.size()))
        throw std::invalid_argument(std::string(what) + " overlap in memory");
}

}  // namespace

FrameInfo declare(CodecKind codec, DType dtype, std::span<const std::int64_t> shape) {
    if (shape.size() > max_rank)
        throw std::invalid_argument("shape has rank " + std::to_string(shape.size()) + ", the limit is " +
                                    std::to_string(max_rank));
    if (!layout::count_elements(shape, dtype))
        throw std::invalid_argument("shape has a negative extent or 2^63 bytes or more");
    return {.codec = codec,
            .dtype = dtype,
            .index_gaps = false,
            .parameter = 0,
            .shape = {shape.begin(), shape.end()},
            .payload_bytes = 0};
}

void check_buffers(const FrameInfo& info, std::span<const std::byte> data,
                   std::span<const std::byte> buffer) {
    if (data.size() != info.data_bytes())
        throw std::invalid_argument("data has " + std::to_string(data.size()) + " bytes, its shape needs " +
                                    std::to_string(info.data_bytes()));
    const std::size_t needed = info.header_bytes() + info.payload_bytes;
    if (buffer.size() < needed)
        throw std::invalid_argument("the buffer has " + std::to_string(buffer.size()) +
                                    " bytes, the frame may need " + std::to_string(needed));
    check_apart(buffer.first(needed), data, "the array and the buffer of its frame");
}

void check_array(const FrameInfo& info, std::span<const std::byte> data, std::span<const std::byte> frame) {
    if (data.size() != info.data_bytes())
        throw std::invalid_argument("the buffer has " + std::to_string(data.size()) +
                                    " bytes, the array has " + std::to_string(info.data_bytes()));
    check_apart(data, frame, "the frame and the buffer of its array");
}

void check_array(const FrameInfo& info, DType dtype, std::span<const std::int64_t> shape) {
    if (info.dtype != dtype || !std::equal(info.shape.begin(), info.shape.end(), shape.begin(), shape.end()))
        throw std::invalid_argument("the frame holds " + describe(info.dtype, info.shape) + ", not " +
                                    describe(dtype, shape));
}

void refuse_non_finite(const std::byte* data, const FrameInfo& info, std::string_view codec) {
    elements::visit(info.dtype, [&]<class Element>(Element) {
        for (std::size_t i = 0; i < info.elements(); ++i) {
            if (Element::key(elements::load<typename Element::Bits>(data, i)) < Element::infinite_key)
                continue;
            const float value = elements::load_single<Element>(data, i);
            const std::string text = std::isnan(value) ? "nan" : value > 0 ? "inf" : "-inf";
            throw std::invalid_argument(
                "element " + std::to_string(i) + " is " + text + ", " + std::string(codec) +
                " takes finite values only (raw, bf16 and lossless_bf16 keep the others)");
        }
    });
}

}  // namespace orbitsplit::encoding
