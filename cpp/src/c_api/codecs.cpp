// Codecs, encoders and decoders.
#include <algorithm>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "c_api/codec_handle.hpp"
#include "c_api/execution.hpp"
#include "c_api/status.hpp"
#include "orbitsplit/c_api.h"
#include "orbitsplit/encoder.hpp"

using namespace orbitsplit;
using namespace orbitsplit::c_api;

using SharedCodec = std::shared_ptr<const CalibratedCodec>;

struct orbitsplit_encoder {
    SharedCodec codec;
    Encoder encoder;
};

struct orbitsplit_decoder {
    std::vector<SharedCodec> codecs;
    Decoder decoder;
};

namespace {

static_assert(static_cast<int>(DType::bfloat16) == ORBITSPLIT_BFLOAT16);
static_assert(static_cast<int>(CodecKind::calibrated) == ORBITSPLIT_CALIBRATED);
static_assert(max_rank == ORBITSPLIT_MAX_RANK);

struct ArrayType {
    DType dtype;
    std::span<const std::int64_t> shape;  // of the caller
};

ArrayType type_of(const orbitsplit_array_type* given) {
    const orbitsplit_array_type& type = needed(given, "type");
    if (type.dtype < ORBITSPLIT_FLOAT32 || type.dtype > ORBITSPLIT_BFLOAT16)
        throw std::invalid_argument("dtype is " + std::to_string(type.dtype) + ", it must be from 0 to 2");
    if (type.rank < 0 || type.rank > ORBITSPLIT_MAX_RANK)
        throw std::invalid_argument("rank is " + std::to_string(type.rank) + ", it must be from 0 to 8");
    return {static_cast<DType>(type.dtype), {type.shape, static_cast<std::size_t>(type.rank)}};
}

// Calls `use` with the codec that a handle has, a Codec or a CalibratedCodec.
template <class Use>
auto with_codec(const orbitsplit_codec* given, Use use) {
    const orbitsplit_codec& codec = needed(given, "codec");
    if (const CalibratedCodec* calibrated = codec.calibrated()) return use(*calibrated);
    return use(std::get<Codec>(codec.codec));
}

SharedCodec shared(const orbitsplit_codec& codec) {
    const auto* found = std::get_if<SharedCodec>(&codec.codec);
    return found != nullptr ? *found : nullptr;
}

int threads_of(std::int32_t threads) { return threads == 0 ? 1 : threads; }

orbitsplit_frame_info describe(const FrameInfo& header) {
    orbitsplit_frame_info known{};
    known.type.dtype = static_cast<std::int32_t>(header.dtype);
    known.type.rank = static_cast<std::int32_t>(header.shape.size());
    std::ranges::copy(header.shape, known.type.shape);
    known.codec = static_cast<std::int32_t>(header.codec);
    known.parameter = header.parameter;
    known.data_bytes = header.data_bytes();
    known.codebook = header.key.codebook;
    known.cut = header.key.cut;
    known.level = header.key.level;
    return known;
}

}  // namespace

extern "C" {

orbitsplit_status orbitsplit_codec_parse(const char* text, orbitsplit_codec** codec,
                                         orbitsplit_error* error) {
    return guarded(error, [&] {
        needed(codec, "codec");
        *codec = new orbitsplit_codec{parse_codec(&needed(text, "text"))};
    });
}

void orbitsplit_codec_free(orbitsplit_codec* codec) { delete codec; }

int64_t orbitsplit_codec_width(const orbitsplit_codec* codec) {
    const CalibratedCodec* calibrated = codec != nullptr ? codec->calibrated() : nullptr;
    return calibrated != nullptr ? static_cast<std::int64_t>(calibrated->width()) : 0;
}

orbitsplit_status orbitsplit_frame_bytes(const orbitsplit_codec* codec, const orbitsplit_array_type* type,
                                         size_t* frame_bytes, orbitsplit_error* error) {
    return guarded(error, [&] {
        const ArrayType array = type_of(type);
        const std::uint64_t bytes = with_codec(codec, [&](const auto& found) {
            return orbitsplit::frame_bytes(array.dtype, array.shape, found);
        });
        if (bytes > SIZE_MAX) throw std::bad_alloc();
        needed(frame_bytes, "frame_bytes") = static_cast<std::size_t>(bytes);
    });
}

orbitsplit_status orbitsplit_compress(const orbitsplit_codec* codec, const orbitsplit_array_type* type,
                                      const void* data, size_t data_bytes,
                                      const orbitsplit_execution* execution, void* frame,
                                      size_t frame_capacity, size_t* frame_bytes, orbitsplit_error* error) {
    return guarded(error, [&] {
        needed(frame_bytes, "frame_bytes");
        const ArrayType array = type_of(type);
        const std::span bytes = bytes_of(data, data_bytes, "data");
        const std::span memory = memory_of(frame, frame_capacity, "frame");
        const Execution how = execution_of(execution);
        *frame_bytes = with_codec(codec, [&](const auto& found) {
            return compress_into(memory, bytes, array.dtype, array.shape, found, how);
        });
    });
}

orbitsplit_status orbitsplit_inspect(const void* frame, size_t frame_bytes, uint64_t max_data_bytes,
                                     orbitsplit_frame_info* info, orbitsplit_error* error) {
    return guarded(error, [&] {
        Limits limits;
        if (max_data_bytes != 0) limits.max_bytes = max_data_bytes;
        write_struct(info, describe(inspect(bytes_of(frame, frame_bytes, "frame"), limits)), "info");
    });
}

orbitsplit_status orbitsplit_decompress(const orbitsplit_codec* codec, const void* frame, size_t frame_bytes,
                                        const orbitsplit_execution* execution, void* data, size_t data_bytes,
                                        orbitsplit_error* error) {
    return guarded(error, [&] {
        const std::span bytes = bytes_of(frame, frame_bytes, "frame");
        const std::span memory = memory_of(data, data_bytes, "data");
        const Execution how = execution_of(execution);
        const Limits limits{.max_bytes = UINT64_MAX};  // the array exists: nothing of its size is allocated
        const CalibratedCodec* calibrated = codec != nullptr ? codec->calibrated() : nullptr;
        if (calibrated != nullptr)
            decompress_into(memory, bytes, *calibrated, limits, how);
        else
            decompress_into(memory, bytes, limits, how);
    });
}

orbitsplit_status orbitsplit_encoder_new(const orbitsplit_codec* codec, const orbitsplit_array_type* type,
                                         int32_t threads, orbitsplit_encoder** encoder,
                                         orbitsplit_error* error) {
    return guarded(error, [&] {
        needed(encoder, "encoder");
        const ArrayType array = type_of(type);
        *encoder = with_codec(codec, [&](const auto& found) {
            return new orbitsplit_encoder{shared(*codec),
                                          Encoder(array.dtype, array.shape, found, threads_of(threads))};
        });
    });
}

void orbitsplit_encoder_free(orbitsplit_encoder* encoder) { delete encoder; }

orbitsplit_status orbitsplit_encode(orbitsplit_encoder* encoder, const void* data, size_t data_bytes,
                                    void* frame, size_t frame_capacity, size_t* frame_bytes,
                                    orbitsplit_error* error) {
    return guarded(error, [&] {
        needed(frame_bytes, "frame_bytes");
        *frame_bytes = needed(encoder, "encoder")
                           .encoder.encode(memory_of(frame, frame_capacity, "frame"),
                                           bytes_of(data, data_bytes, "data"));
    });
}

orbitsplit_status orbitsplit_decoder_new(const orbitsplit_codec* const* codecs, size_t codec_count,
                                         const orbitsplit_array_type* type, int32_t threads,
                                         orbitsplit_decoder** decoder, orbitsplit_error* error) {
    return guarded(error, [&] {
        needed(decoder, "decoder");
        const ArrayType array = type_of(type);
        std::vector<SharedCodec> calibrated;
        std::vector<const CalibratedCodec*> all;
        for (const orbitsplit_codec* given : array_of(codecs, codec_count, "codecs")) {
            SharedCodec codec = shared(needed(given, "a codec of codecs"));
            if (codec == nullptr) continue;
            all.push_back(codec.get());
            calibrated.push_back(std::move(codec));
        }
        *decoder = new orbitsplit_decoder{std::move(calibrated),
                                          Decoder(array.dtype, array.shape, all, threads_of(threads))};
    });
}

void orbitsplit_decoder_free(orbitsplit_decoder* decoder) { delete decoder; }

orbitsplit_status orbitsplit_decode(orbitsplit_decoder* decoder, const void* frame, size_t frame_bytes,
                                    void* data, size_t data_bytes, orbitsplit_error* error) {
    return guarded(error, [&] {
        needed(decoder, "decoder")
            .decoder.decode(memory_of(data, data_bytes, "data"), bytes_of(frame, frame_bytes, "frame"));
    });
}
}
