#include "orbitsplit/encoder.hpp"

#include <algorithm>
#include <atomic>
#include <limits>
#include <string>
#include <utility>
#include <vector>

#include "codec/frame/encoding.hpp"
#include "codec/frame/layout.hpp"
#include "codec/in_place.hpp"
#include "support/isa.hpp"
#include "support/pool.hpp"

namespace orbitsplit {

namespace {

// One call of an object: refuses a second one meanwhile, and gives the memory back at its end.
class Call {
  public:
    Call(std::atomic_flag& is_busy, Workspace& workspace, const char* what)
        : is_busy_(is_busy), workspace_(workspace) {
        if (is_busy.test_and_set(std::memory_order_acquire))
            throw BusyError(std::string("this ") + what +
                            " is in use by another call; each thread needs an object of its own");
    }
    ~Call() {
        workspace_.give_back();
        is_busy_.clear(std::memory_order_release);
    }
    Call(const Call&) = delete;
    Call& operator=(const Call&) = delete;

  private:
    std::atomic_flag& is_busy_;
    Workspace& workspace_;
};

// What else would be allocated by the first call: threads, and what the environment variable of the set is read into.
int started(int threads) {
    pool::check_threads(threads);
    active_isa();
    const auto parts = static_cast<std::size_t>(threads);
    if (threads > 1) pool::run_parts(parts, threads, [](std::size_t) {});
    return threads;
}

// Refers to a function, because a copy of one may allocate.
std::function<bool()> reference_to(const std::function<bool()>& stop_requested) {
    if (!stop_requested) return {};
    return std::ref(stop_requested);
}

}  // namespace

struct Encoder::State {
    State(FrameInfo header, WorkspaceSize size, const calibrated::Prepared* calibrated_codec,
          int thread_count)
        : declared(std::move(header)),
          info(declared),
          codec(calibrated_codec),
          threads(started(thread_count)),
          workspace(threads, size) {}

    FrameInfo declared;
    FrameInfo info;  // of the last frame; its shape keeps its memory
    const calibrated::Prepared* codec;
    int threads;
    Workspace workspace;
    std::atomic_flag is_busy;
};

Encoder::Encoder(DType dtype, std::span<const std::int64_t> shape, const Codec& codec, int threads) {
    FrameInfo declared = in_place::declare(dtype, shape, codec);
    const WorkspaceSize size = in_place::encode_memory(declared, threads);
    state_ = std::make_unique<State>(std::move(declared), size, nullptr, threads);
}

Encoder::Encoder(DType dtype, std::span<const std::int64_t> shape, const CalibratedCodec& codec,
                 int threads) {
    FrameInfo declared = in_place::declare(dtype, shape, codec);
    const calibrated::Prepared& prepared = calibrated::prepared(codec);
    const WorkspaceSize size = in_place::encode_memory(declared, prepared, threads);
    state_ = std::make_unique<State>(std::move(declared), size, &prepared, threads);
}

Encoder::~Encoder() = default;
Encoder::Encoder(Encoder&&) noexcept = default;
Encoder& Encoder::operator=(Encoder&&) noexcept = default;

std::uint64_t Encoder::frame_bytes() const {
    return state_->declared.header_bytes() + state_->declared.payload_bytes;
}

std::uint64_t Encoder::data_bytes() const { return state_->declared.data_bytes(); }

std::size_t Encoder::encode(std::span<std::byte> frame, std::span<const std::byte> data,
                            const std::function<bool()>& stop_requested) {
    State& state = *state_;
    const Call call(state.is_busy, state.workspace, "encoder");
    const Execution execution(state.threads, reference_to(stop_requested));
    state.info = state.declared;
    if (state.codec == nullptr) return in_place::encode(frame, data, state.info, execution, state.workspace);
    return in_place::encode(frame, data, state.info, *state.codec, execution, state.workspace);
}

struct Decoder::State {
    State(DType type, std::span<const std::int64_t> extents, std::span<const CalibratedCodec* const> all,
          int thread_count)
        : dtype(type),
          shape(extents.begin(), extents.end()),
          bytes(encoding::declare(CodecKind::raw, dtype, shape).data_bytes()),
          threads(started(thread_count)),
          codecs(prepared(all)),
          workspace(threads, memory()) {
        info.shape.reserve(max_rank);
    }

    static std::vector<const calibrated::Prepared*> prepared(std::span<const CalibratedCodec* const> all) {
        std::vector<const calibrated::Prepared*> found;
        for (const CalibratedCodec* codec : all) found.push_back(&calibrated::prepared(*codec));
        return found;
    }

    // A frame is of one codec at a time.
    WorkspaceSize memory() const {
        WorkspaceSize most = in_place::decode_memory(dtype, shape, threads);
        for (const calibrated::Prepared* codec : codecs) {
            const WorkspaceSize size = in_place::decode_memory(dtype, shape, *codec);
            most.call = std::max(most.call, size.call);
            most.part = std::max(most.part, size.part);
        }
        return most;
    }

    // The codec of the frame that was read: none for a fixed one, and where there is none at all.
    const calibrated::Prepared* codec() const {
        if (info.codec != CodecKind::calibrated || codecs.empty()) return nullptr;
        for (const calibrated::Prepared* one : codecs)
            if (one->parameters.key == info.key || codecs.size() == 1) return one;
        throw CorruptFrameError("frame needs " + layout::describe(info.key) + ", none of the " +
                                std::to_string(codecs.size()) + " codecs of this decoder");
    }

    DType dtype;
    std::vector<std::int64_t> shape;
    std::uint64_t bytes;
    int threads;
    std::vector<const calibrated::Prepared*> codecs;
    Workspace workspace;
    FrameInfo info{};  // of the last frame; its shape keeps its memory
    std::atomic_flag is_busy;
};

Decoder::Decoder(DType dtype, std::span<const std::int64_t> shape, int threads)
    : Decoder(dtype, shape, std::span<const CalibratedCodec* const>(), threads) {}

Decoder::Decoder(DType dtype, std::span<const std::int64_t> shape, const CalibratedCodec& codec,
                 int threads) {
    const CalibratedCodec* const one = &codec;
    state_ = std::make_unique<State>(dtype, shape, std::span(&one, 1), threads);
}

Decoder::Decoder(DType dtype, std::span<const std::int64_t> shape,
                 std::span<const CalibratedCodec* const> codecs, int threads)
    : state_(std::make_unique<State>(dtype, shape, codecs, threads)) {}

Decoder::~Decoder() = default;
Decoder::Decoder(Decoder&&) noexcept = default;
Decoder& Decoder::operator=(Decoder&&) noexcept = default;

std::uint64_t Decoder::data_bytes() const { return state_->bytes; }

void Decoder::decode(std::span<std::byte> data, std::span<const std::byte> frame,
                     const std::function<bool()>& stop_requested) {
    State& state = *state_;
    const Call call(state.is_busy, state.workspace, "decoder");
    const Execution execution(state.threads, reference_to(stop_requested));
    // The array exists, so no limit applies: a frame of another shape is reported as such.
    layout::read_header(frame, {.max_bytes = std::numeric_limits<std::uint64_t>::max()}, state.info);
    const calibrated::Prepared* codec = state.codec();
    if (codec != nullptr) in_place::check_codec(state.info, *codec);
    encoding::check_array(state.info, state.dtype, state.shape);
    if (codec == nullptr)
        in_place::decode(data, state.info, frame, execution, state.workspace);
    else
        in_place::decode(data, state.info, frame, *codec, execution, state.workspace);
}

}  // namespace orbitsplit
