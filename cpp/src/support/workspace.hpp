// Working memory of codecs: taken piece by piece during a call, given back as a whole at its end. An Encoder or a Decoder
// keeps one from call to call, large enough that no call allocates; a single call makes its own.
#pragma once

#include <array>
#include <atomic>
#include <cstddef>
#include <memory>
#include <span>
#include <type_traits>
#include <vector>

namespace orbitsplit {

// Memory for one thread. What does not fit into the memory it has is allocated, so that a wrong estimate costs time only.
class Arena {
  public:
    Arena() = default;
    // Begins with memory of the caller, aligned to 64 bytes.
    explicit Arena(std::span<std::byte> first) : free_(first), first_(first) {}
    Arena(const Arena&) = delete;
    Arena& operator=(const Arena&) = delete;

    // Rounded up so that kernels may read and write some bytes beyond the end.
    static constexpr std::size_t padded(std::size_t bytes) { return (bytes + 127) / 64 * 64; }

    // Replaces what it begins with. Nothing may be in use.
    void reserve(std::size_t bytes) {
        reserved_ = block_of(bytes);
        free_ = first_ = {reserved_.get(), bytes};
    }

    // Contents are unspecified, alignment is 64 bytes.
    template <class T>
    T* take(std::size_t count) {
        static_assert(std::is_trivially_destructible_v<T>);
        const std::size_t bytes = padded(count * sizeof(T));
        if (bytes > free_.size()) {
            more_.push_back(block_of(bytes));
            return reinterpret_cast<T*>(more_.back().get());
        }
        auto* taken = reinterpret_cast<T*>(free_.data());
        free_ = free_.subspan(bytes);
        return taken;
    }

    void give_back() {
        free_ = first_;
        more_.clear();
    }

  private:
    static constexpr std::align_val_t alignment{64};
    struct Free {
        void operator()(std::byte* block) const { ::operator delete(block, alignment); }
    };
    using Block = std::unique_ptr<std::byte, Free>;

    static Block block_of(std::size_t bytes) {
        return Block(static_cast<std::byte*>(::operator new(bytes, alignment)));
    }

    std::span<std::byte> free_;
    std::span<std::byte> first_;
    Block reserved_;
    std::vector<Block> more_;
};

// The memory that calls need, in bytes: once for the call, and for each part that runs at the same time as others.
struct WorkspaceSize {
    std::size_t call = 0;
    std::size_t part = 0;
};

// Memory for a call that runs on up to `threads` threads.
class Workspace {
    struct Slot {
        std::atomic_flag is_used;
        Arena arena;
    };

  public:
    explicit Workspace(int threads, WorkspaceSize size = {}) : slots_(slots_of(threads)) {
        call_.reserve(slots_.empty() ? size.call + size.part : size.call);
        for (Slot& slot : slots_) slot.arena.reserve(size.part);
    }
    // For a single call. `near` is memory of the caller, aligned to 64 bytes.
    Workspace(int threads, std::span<std::byte> near) : call_(near), slots_(slots_of(threads)) {}

    Arena& call() { return call_; }
    void give_back() { call_.give_back(); }

    // Memory for a part of the work, until the object's end. At most `threads` of them exist at a time.
    class Part {
      public:
        explicit Part(Workspace& workspace) : slot_(workspace.free_slot()), call_(workspace.call_) {}
        ~Part() {
            if (slot_ == nullptr) return;
            slot_->arena.give_back();
            slot_->is_used.clear(std::memory_order_release);
        }
        Part(const Part&) = delete;
        Part& operator=(const Part&) = delete;

        Arena& arena() { return slot_ != nullptr ? slot_->arena : call_; }

      private:
        Slot* slot_;
        Arena& call_;
    };

  private:
    static std::size_t slots_of(int threads) { return threads > 1 ? static_cast<std::size_t>(threads) : 0; }

    // None with one thread, whose parts use the memory of the call.
    Slot* free_slot() {
        while (!slots_.empty())
            for (Slot& slot : slots_)
                if (!slot.is_used.test_and_set(std::memory_order_acquire)) return &slot;
        return nullptr;
    }

    Arena call_;
    std::vector<Slot> slots_;
};

// The workspace of a single call. What is small, such as for the row of a decode step, is on the stack and allocates
// nothing.
class LocalWorkspace {
  public:
    explicit LocalWorkspace(int threads) : workspace_(threads, near_) {}

    operator Workspace&() { return workspace_; }

  private:
    alignas(64) std::array<std::byte, std::size_t{48} << 10> near_;
    Workspace workspace_;
};

}  // namespace orbitsplit
