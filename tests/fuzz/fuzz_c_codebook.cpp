// A libFuzzer target: codebooks through the C interface. Any bytes are a codebook or ORBITSPLIT_INVALID_FILE, and so is
// each of its codecs; a codec that is valid encodes and decodes. A fuzzing build does not compare the checksums of files.
#include <algorithm>
#include <cstdint>
#include <cstring>
#include <fstream>
#include <iterator>
#include <vector>

#include "orbitsplit/c_api.h"
#include "tally.hpp"

using fuzz::require;

extern "C" std::size_t LLVMFuzzerMutate(std::uint8_t* data, std::size_t size, std::size_t max_size);

namespace {

constexpr std::size_t length_bytes = 8;

fuzz::Tally tally{"read"};

// A valid file, as a starting point: what mutations make of one is mostly none.
const std::vector<char>& golden() {
    static const std::vector<char> bytes = [] {
        std::ifstream file(ORBITSPLIT_FUZZ_CODEBOOK, std::ios::binary);
        return std::vector<char>(std::istreambuf_iterator<char>(file), {});
    }();
    return bytes;
}

void use(const orbitsplit_codec* codec) {
    // Only a codec of this width takes the array; fixed ones take any.
    for (const std::int64_t width : {8, 4}) {
        const orbitsplit_array_type type{ORBITSPLIT_FLOAT32, 2, {3, width}};
        std::size_t size = 0;
        if (orbitsplit_frame_bytes(codec, &type, &size, nullptr) != ORBITSPLIT_OK) continue;
        std::vector<float> x(static_cast<std::size_t>(3 * width));
        for (std::size_t i = 0; i < x.size(); ++i) x[i] = static_cast<float>(i * i) - 9.5F;
        std::vector<std::uint8_t> frame(size);
        const orbitsplit_status encoded = orbitsplit_compress(codec, &type, x.data(), 4 * x.size(), nullptr,
                                                              frame.data(), size, &size, nullptr);
        // Numbers may leave the range of float32 when they are transformed.
        require(encoded == ORBITSPLIT_OK || encoded == ORBITSPLIT_INVALID_ARGUMENT,
                "an array is encoded or refused");
        if (encoded != ORBITSPLIT_OK) return;
        require(orbitsplit_decompress(codec, frame.data(), size, nullptr, x.data(), 4 * x.size(), nullptr) ==
                    ORBITSPLIT_OK,
                "a frame is decoded by its codec");
    }
}

void use_levels(const orbitsplit_codebook* book, std::int32_t cut) {
    for (std::int32_t level = 0;
         level < static_cast<std::int32_t>(orbitsplit_codebook_level_count(book, cut)); ++level) {
        orbitsplit_level_info info{};
        info.struct_bytes = sizeof info;
        require(orbitsplit_codebook_level(book, cut, level, &info, nullptr) == ORBITSPLIT_OK,
                "a level is read");
        orbitsplit_codec* codec = nullptr;
        const orbitsplit_status status = orbitsplit_codebook_codec(book, cut, level, &codec, nullptr);
        require(status == ORBITSPLIT_OK || status == ORBITSPLIT_INVALID_FILE,
                "a level has a codec or is invalid");
        if (status == ORBITSPLIT_OK) use(codec);
        orbitsplit_codec_free(codec);
    }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
    ++tally.inputs;
    orbitsplit_codebook* book = nullptr;
    orbitsplit_error error{};
    const orbitsplit_status status = orbitsplit_codebook_parse(data, size, &book, &error);
    require(status == ORBITSPLIT_OK || (status == ORBITSPLIT_INVALID_FILE && error.message[0] != '\0'),
            "bytes are a codebook or none");
    if (status != ORBITSPLIT_OK) return 0;
    ++tally.accepted;
    for (std::size_t i = 0; i < orbitsplit_codebook_cut_count(book); ++i)
        use_levels(book, orbitsplit_codebook_cut(book, i));
    orbitsplit_codebook_free(book);
    return 0;
}

// Mutates the header or the data of a file, and mostly repairs the length of the header, which anything else depends on.
extern "C" std::size_t LLVMFuzzerCustomMutator(std::uint8_t* data, std::size_t size, std::size_t max_size,
                                               unsigned seed) {
    if (seed % 3 == 0 && golden().size() <= max_size) {
        size = golden().size();
        std::memcpy(data, golden().data(), size);
    }
    std::uint64_t length = 0;
    if (size >= length_bytes) std::memcpy(&length, data, length_bytes);
    if (size < length_bytes || length > size - length_bytes || seed % 16 == 0)
        return LLVMFuzzerMutate(data, size, max_size);
    const std::size_t header = length_bytes + static_cast<std::size_t>(length);
    if (seed % 4 == 0) {
        // Other numbers in tensors of the same size.
        std::vector<std::uint8_t> numbers(data + header, data + size);
        if (!numbers.empty()) LLVMFuzzerMutate(numbers.data(), numbers.size(), numbers.size());
        std::copy(numbers.begin(), numbers.end(), data + header);
        return size;
    }
    const std::vector<std::uint8_t> numbers(data + header, data + size);
    length = LLVMFuzzerMutate(data + length_bytes, header - length_bytes,
                              max_size - length_bytes - numbers.size());
    std::memcpy(data, &length, length_bytes);
    std::copy(numbers.begin(), numbers.end(), data + length_bytes + length);
    return length_bytes + static_cast<std::size_t>(length) + numbers.size();
}
