// A libFuzzer target: decoding through the C interface. Any bytes yield an array or ORBITSPLIT_CORRUPT_FRAME, the same one
// from a call and from a decoder. Calibrated frames are decoded with the codecs of a codebook that is read from memory.
#include <array>
#include <cstdint>
#include <fstream>
#include <iterator>
#include <random>
#include <string>
#include <vector>

#include "frame_mutator.hpp"
#include "orbitsplit/c_api.h"
#include "tally.hpp"

using fuzz::require;

namespace {

constexpr std::uint64_t limit = 1U << 16;
constexpr std::array names = {"raw",     "bf16", "int8:8",    "int8",         "int4",
                              "int4:16", "topk", "topk:0.02", "lossless_bf16"};

fuzz::Tally tally{"decoded"};

// The codecs of the codebook, then those of `names`.
struct Codecs {
    fuzz::Book book;
    std::vector<orbitsplit_codec*> all;
    std::vector<std::int64_t> widths;  // 0: any

    Codecs() {
        std::ifstream file(ORBITSPLIT_FUZZ_CODEBOOK, std::ios::binary);
        const std::vector<char> bytes(std::istreambuf_iterator<char>(file), {});
        orbitsplit_codebook* read = nullptr;
        require(orbitsplit_codebook_parse(bytes.data(), bytes.size(), &read, nullptr) == ORBITSPLIT_OK,
                "the codebook is valid");
        book.id = orbitsplit_codebook_id(read);
        for (std::size_t i = 0; i < orbitsplit_codebook_cut_count(read); ++i) {
            const std::int32_t cut = orbitsplit_codebook_cut(read, i);
            const auto levels = static_cast<std::int32_t>(orbitsplit_codebook_level_count(read, cut));
            for (std::int32_t level = cut == 2 ? 1 : 0; level < levels;
                 ++level) {  // level 0 of cut 2 is fixed
                add(orbitsplit_codebook_codec(read, cut, level, &all.emplace_back(), nullptr), 8);
                book.levels.push_back(
                    {static_cast<std::uint16_t>(cut), static_cast<std::uint16_t>(level), 8});
            }
        }
        for (const char* name : names) add(orbitsplit_codec_parse(name, &all.emplace_back(), nullptr), 0);
        orbitsplit_codebook_free(read);
    }

    void add(orbitsplit_status status, std::int64_t width) {
        require(status == ORBITSPLIT_OK, "the codec is valid");
        widths.push_back(width);
    }

    const orbitsplit_codec* of(const orbitsplit_frame_info& info) const {
        for (std::size_t k = 0; k < book.levels.size(); ++k)
            if (book.levels[k].cut == info.cut && book.levels[k].level == info.level) return all[k];
        return nullptr;
    }
};

const Codecs& codecs() {
    static const Codecs& made = *new Codecs;  // never freed
    return made;
}

std::vector<std::byte> fresh_frame(std::minstd_rand& random) {
    const std::size_t k = random() % codecs().all.size();
    orbitsplit_array_type type{static_cast<std::int32_t>(random() % 3), 2, {}};
    type.shape[0] = 1 + static_cast<std::int64_t>(random() % (random() % 4 == 0 ? 130 : 4));
    type.shape[1] =
        codecs().widths[k] != 0 ? codecs().widths[k] : 1 + static_cast<std::int64_t>(random() % 200);
    const std::vector<std::byte> data =
        fuzz::random_array(static_cast<orbitsplit::DType>(type.dtype),
                           static_cast<std::size_t>(type.shape[0] * type.shape[1]), random);
    std::size_t size = 0;
    require(orbitsplit_frame_bytes(codecs().all[k], &type, &size, nullptr) == ORBITSPLIT_OK, "a bound");
    std::vector<std::byte> frame(size);
    require(orbitsplit_compress(codecs().all[k], &type, data.data(), data.size(), nullptr, frame.data(), size,
                                &size, nullptr) == ORBITSPLIT_OK,
            "finite values are encoded");
    frame.resize(size);
    return frame;
}

// A decoder for this dtype and shape, with the codecs of all levels, gives the same array or refuses the frame too.
void compare_decoder(const orbitsplit_frame_info& info, const std::uint8_t* frame, std::size_t size,
                     orbitsplit_status status, const std::vector<std::byte>& expected) {
    orbitsplit_decoder* decoder = nullptr;
    require(orbitsplit_decoder_new(codecs().all.data(), codecs().all.size(), &info.type, 1, &decoder,
                                   nullptr) == ORBITSPLIT_OK,
            "what inspect takes, a decoder takes");
    std::vector<std::byte> array(expected.size());
    for (int call = 0; call < 2; ++call)
        require(orbitsplit_decode(decoder, frame, size, array.data(), array.size(), nullptr) == status,
                "a decoder takes what decompress takes");
    require(status != ORBITSPLIT_OK || array == expected, "a decoder gives the array of decompress");
    orbitsplit_decoder_free(decoder);
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
    ++tally.inputs;
    orbitsplit_error error{};
    orbitsplit_frame_info info{};
    info.struct_bytes = sizeof info;
    const orbitsplit_status inspected = orbitsplit_inspect(data, size, limit, &info, &error);
    require(inspected == ORBITSPLIT_OK || inspected == ORBITSPLIT_CORRUPT_FRAME, "bytes are a frame or none");
    if (inspected != ORBITSPLIT_OK) return 0;
    require(info.data_bytes <= limit, "the array is within the limit");
    std::vector<std::byte> array(info.data_bytes);
    const orbitsplit_status status =
        orbitsplit_decompress(codecs().of(info), data, size, nullptr, array.data(), array.size(), &error);
    require(status == ORBITSPLIT_OK || (status == ORBITSPLIT_CORRUPT_FRAME && error.message[0] != '\0'),
            "a frame is decoded or corrupt");
    if (size % 8 == 0) compare_decoder(info, data, size, status, array);
    tally.accepted += status == ORBITSPLIT_OK;
    return 0;
}

extern "C" std::size_t LLVMFuzzerCustomMutator(std::uint8_t* data, std::size_t size, std::size_t max_size,
                                               unsigned seed) {
    return fuzz::mutate_frame(data, size, max_size, seed, codecs().book, false, fresh_frame);
}
