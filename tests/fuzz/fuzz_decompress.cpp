// A libFuzzer target: any bytes yield an array or CorruptFrameError, without a crash, an access outside the frame, an
// allocation beyond the limit (-malloc_limit_mb) or a hang (-timeout).
//
// With ORBITSPLIT_FUZZ_LARGE set, frames have several streams, which readers decode interleaved: hundreds of rows of
// calibrated codes, hundreds of thousands of lossless_bf16 values. Such a run needs a matching -max_len.
#include <algorithm>
#include <array>
#include <cstdint>
#include <cstdlib>
#include <optional>
#include <random>
#include <span>
#include <string>
#include <vector>

#include "frame_mutator.hpp"
#include "orbitsplit/calibrated.hpp"
#include "orbitsplit/codec.hpp"
#include "tally.hpp"

using namespace orbitsplit;
using fuzz::require;
using fuzz::Tally;

namespace {

const bool is_large = std::getenv("ORBITSPLIT_FUZZ_LARGE") != nullptr;
const Limits limits{.max_bytes = is_large ? 1U << 20 : 1U << 16};
constexpr std::array codecs = {"raw",     "bf16", "int8:8",    "int8",         "int4",
                               "int4:16", "topk", "topk:0.02", "lossless_bf16"};

Tally tally{"decoded"};

// The codebook that frames are decoded with: cut c of it is the c-th of these. With and without tables (one of them
// nearly all escape) and transforms, and steps so small that values escape.
const std::vector<CalibratedCodec>& codebook() {
    static const std::vector<CalibratedCodec> codecs = [] {
        const auto parameters = [](std::uint16_t cut, std::size_t width) {
            CalibratedParameters made;
            made.key = {.codebook = 1, .cut = cut, .level = 0};
            for (std::size_t c = 0; c < width; ++c) made.step.push_back(c % 7 == 3 ? 0x1p-9F : 0.125F);
            return made;
        };
        const auto with_tables = [](CalibratedParameters made) {
            made.tables.resize(2);
            for (int code = -6; code <= 6; ++code) made.tables[0][static_cast<std::uint8_t>(code)] = 18;
            made.tables[1][0] = 1;
            for (std::size_t c = 0; c < made.step.size(); ++c)
                made.table_of_channel.push_back(static_cast<std::uint8_t>(c % 5 == 0));
            return made;
        };
        std::vector<CalibratedCodec> all;
        all.emplace_back(parameters(0, 33));
        all.emplace_back(with_tables(parameters(1, 33)));
        all.emplace_back(with_tables(parameters(2, 260)));
        CalibratedParameters transformed = with_tables(parameters(3, 64));
        transformed.hadamard = 16;
        transformed.threshold.assign(64, 0.25F);
        all.emplace_back(std::move(transformed));
        return all;
    }();
    return codecs;
}

std::optional<Decoded> try_decompress(std::span<const std::byte> frame) {
    try {
        const FrameInfo info = inspect(frame, limits);
        if (info.codec == CodecKind::calibrated && info.key.cut < codebook().size())
            return decompress(frame, codebook()[info.key.cut], limits);
        return decompress(frame, limits);
    } catch (const CorruptFrameError&) {
        return std::nullopt;
    }
}

// The codec of a frame: an index into `codecs` or, after those, into the codebook.
struct Choice {
    std::size_t codec;
    DType dtype;
    std::array<std::int64_t, 2> shape;

    const CalibratedCodec* calibrated() const {
        return codec < codecs.size() ? nullptr : &codebook()[codec - codecs.size()];
    }
};

Choice choose(std::minstd_rand& random) {
    Choice choice{.codec = random() % (codecs.size() + codebook().size()),
                  .dtype = static_cast<DType>(random() % 3),
                  .shape = {}};
    if (is_large && choice.calibrated() == nullptr) choice.codec = codecs.size() - 1;
    const auto below = [&](unsigned limit) { return static_cast<std::int64_t>(random() % limit); };
    if (choice.calibrated() != nullptr)
        choice.shape = {is_large ? 200 + below(900) : 1 + below(below(4) == 0 ? 130 : 4),
                        static_cast<std::int64_t>(choice.calibrated()->width())};
    else if (is_large)
        choice.shape = {1 + below(5), 60'000 + below(6'000)};
    else
        choice.shape = {1 + below(below(4) == 0 ? 130 : 4), 1 + below(200)};
    return choice;
}

// A frame of a random array, as a starting point that mutations of the corpus do not reach.
std::vector<std::byte> fresh_frame(std::minstd_rand& random) {
    const auto [codec, dtype, shape] = choose(random);
    const CalibratedCodec* calibrated = Choice{codec, dtype, shape}.calibrated();
    const std::vector<std::byte> data =
        fuzz::random_array(dtype, static_cast<std::size_t>(shape[0] * shape[1]), random);
    if (calibrated != nullptr) return compress(data, dtype, shape, *calibrated);
    return compress(data, dtype, shape, parse_codec(codecs[codec]));
}

fuzz::Book book() {
    fuzz::Book book{1, {}};
    for (const CalibratedCodec& codec : codebook())
        book.levels.push_back({codec.parameters().key.cut, codec.parameters().key.level, codec.width()});
    return book;
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
    const auto frame = std::as_bytes(std::span(data, size));
    static const std::vector<std::string> sets = isas();
    set_isa(sets.front());
    std::optional<FrameInfo> info;
    try {
        info = inspect(frame, limits);
    } catch (const CorruptFrameError&) {
    }
    const std::optional<Decoded> decoded = try_decompress(frame);
    ++tally.inputs;
    // Vector code detects damage at other points than scalar code; the outcome must be the same.
    set_isa(sets.size() > 1 ? sets[1 + size % (sets.size() - 1)] : sets.front());
    const std::optional<Decoded> again = try_decompress(frame);
    require(decoded.has_value() == again.has_value(), "all instruction sets refuse the same frames");
    if (!decoded) return 0;
    require(decoded->data == again->data, "all instruction sets decode to the same array");
    ++tally.accepted;
    require(info.has_value(), "what decompress takes, inspect takes");
    require(decoded->data.size() == info->data_bytes() && decoded->data.size() <= limits.max_bytes,
            "the array has the bytes that its frame declares");
    require(decoded->shape == info->shape && decoded->dtype == info->dtype,
            "the array has the shape and dtype that its frame declares");
    return 0;
}

extern "C" std::size_t LLVMFuzzerCustomMutator(std::uint8_t* data, std::size_t size, std::size_t max_size,
                                               unsigned seed) {
    static const fuzz::Book known = book();
    return fuzz::mutate_frame(data, size, max_size, seed, known, is_large, fresh_frame);
}
