#include "c_api/tensor_file.hpp"

#include <algorithm>
#include <cmath>
#include <optional>
#include <stdexcept>
#include <string_view>
#include <utility>

#include "c_api/sha256.hpp"

namespace orbitsplit::c_api {

namespace {

// A number of JSON takes some 200 bytes of memory: a header of this size at most 1.7 GB, a true one some 100 kB.
constexpr std::uint64_t largest_header = std::uint64_t{16} << 20;
#if defined(FUZZING_BUILD_MODE_UNSAFE_FOR_PRODUCTION)
constexpr bool is_fuzzed = true;
#else
constexpr bool is_fuzzed = false;
#endif

constexpr double largest_exact = 0x1p53;  // integers up to it are exact as float64

[[noreturn]] void refuse(const std::string& what) { throw std::invalid_argument(what); }

std::size_t item_bytes(std::string_view dtype) {
    constexpr std::pair<std::string_view, std::size_t> sizes[] = {
        {"F32", 4}, {"U8", 1},  {"F64", 8}, {"F16", 2}, {"BF16", 2}, {"I64", 8}, {"U64", 8},
        {"I32", 4}, {"U32", 4}, {"I16", 2}, {"U16", 2}, {"I8", 1},   {"BOOL", 1}};
    for (const auto& [name, bytes] : sizes)
        if (name == dtype) return bytes;
    refuse("a tensor has dtype \"" + std::string(dtype) + "\", which is unknown");
}

std::uint64_t whole(const Json& value, const std::string& what) {
    if (value.kind != Json::Kind::number || value.number < 0 || value.number > largest_exact ||
        value.number != std::floor(value.number))
        refuse(what + " is not a whole number from 0 to 2^53");
    return static_cast<std::uint64_t>(value.number);
}

Tensor tensor_of(const Json& entry, const std::string& what, std::span<const std::byte> data) {
    Tensor tensor{.dtype = member(entry, "dtype", what, Json::Kind::string).text, .shape = {}, .bytes = {}};
    std::uint64_t needed = item_bytes(tensor.dtype);
    for (const Json& extent : member(entry, "shape", what, Json::Kind::array).items) {
        tensor.shape.push_back(whole(extent, "an extent of " + what));
        const std::uint64_t count = tensor.shape.back();
        if (count > 0 && needed > data.size() / count) refuse(what + " is larger than the file");
        needed *= count;
    }
    const std::vector<Json>& offsets = member(entry, "data_offsets", what, Json::Kind::array).items;
    if (offsets.size() != 2)
        refuse(what + " has " + std::to_string(offsets.size()) + " offsets, it must have 2");
    const std::uint64_t begin = whole(offsets[0], "an offset of " + what);
    const std::uint64_t end = whole(offsets[1], "an offset of " + what);
    if (begin > end || end > data.size() || end - begin != needed)
        refuse(what + " has " + std::to_string(needed) + " bytes from " + std::to_string(begin) + " to " +
               std::to_string(end) + " of " + std::to_string(data.size()));
    tensor.bytes = data.subspan(static_cast<std::size_t>(begin), static_cast<std::size_t>(needed));
    return tensor;
}

// Tensors cover the data without overlap, as the format requires: a file has no hidden parts.
void check_cover(const std::map<std::string, Tensor>& tensors, std::span<const std::byte> data) {
    std::vector<std::span<const std::byte>> parts;
    for (const auto& [name, tensor] : tensors) parts.push_back(tensor.bytes);
    std::ranges::sort(parts, [](const auto& a, const auto& b) {
        return std::pair(a.data(), a.size()) < std::pair(b.data(), b.size());
    });
    const std::byte* covered = data.data();
    for (const auto& part : parts) {
        if (part.data() != covered) refuse("its tensors overlap or leave a gap");
        covered += part.size();
    }
    if (covered != data.data() + data.size()) refuse("its tensors do not cover its data");
}

std::span<const std::byte> bytes_of(std::string_view text) { return std::as_bytes(std::span(text)); }

std::string digest_of(const std::map<std::string, Tensor>& tensors) {
    Sha256 digest;
    for (const auto& [name, tensor] : tensors) {
        digest.add(bytes_of(name));
        digest.add(tensor.bytes);
    }
    return digest.finish();
}

Json document_of(const Json& metadata, const std::map<std::string, Tensor>& tensors) {
    const auto text = [&](std::string_view key) -> const std::string& {
        return member(metadata, key, "its metadata", Json::Kind::string).text;
    };
    Sha256 digest;
    digest.add(bytes_of(text("orbitsplit")));
    if (digest.finish() != text("orbitsplit.sha256") && !is_fuzzed)
        refuse("its document does not match its checksum");
    if (digest_of(tensors) != text("orbitsplit.arrays.sha256") && !is_fuzzed)
        refuse("its arrays do not match their checksum");
    return parse_json(text("orbitsplit"));
}

}  // namespace

TensorFile read_tensor_file(std::span<const std::byte> bytes) {
    constexpr std::size_t length_bytes = 8;
    if (bytes.size() < length_bytes)
        refuse("it has " + std::to_string(bytes.size()) + " bytes, the length of its header needs 8");
    std::uint64_t length = 0;
    for (std::size_t i = length_bytes; i-- > 0;)
        length = length << 8 | std::to_integer<std::uint64_t>(bytes[i]);
    if (length > largest_header || length > bytes.size() - length_bytes)
        refuse("its header has " + std::to_string(length) + " bytes, the limits are those of the file, " +
               std::to_string(bytes.size() - length_bytes) + ", and " + std::to_string(largest_header));
    const std::span<const std::byte> head = bytes.subspan(length_bytes, static_cast<std::size_t>(length));
    const std::span<const std::byte> data = bytes.subspan(length_bytes + head.size());
    const Json header = parse_json({reinterpret_cast<const char*>(head.data()), head.size()});
    if (header.kind != Json::Kind::object) refuse("its header is not an object");
    TensorFile file;
    const Json* metadata = nullptr;
    for (const auto& [name, value] : header.members) {
        if (name == "__metadata__")
            metadata = &value;
        else
            file.tensors.emplace(name, tensor_of(value, "tensor \"" + name + "\"", data));
    }
    check_cover(file.tensors, data);
    if (metadata == nullptr) refuse("it has no metadata");
    file.document = document_of(*metadata, file.tensors);
    return file;
}

}  // namespace orbitsplit::c_api
