/* The dot products of K vectors with each other, each element read from memory once.
 *
 *     out[p] = sum_e  x_i[e] * x_j[e]      for the pairs i <= j, p in (0,0) (0,1) .. (1,1) ..
 *
 * Sixteen lanes (twice that while registers last) add in float32 over a stretch of some hundred
 * terms at most, and in double from stretch to stretch. That is right to 1e-9 on usual data and
 * 1e-6 on any.
 *
 * Up to four vectors have all their pairs in registers. More are multiplied four by four, over a
 * stretch that stays in cache meanwhile.
 */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

enum { LANES = 16, TILE = 4, STRETCH = 1024, LONG = 2048 };

typedef float lanes __attribute__((vector_size(4 * LANES), aligned(4), may_alias));
typedef double totals __attribute__((vector_size(8 * LANES), aligned(8), may_alias));
typedef uint16_t halves __attribute__((vector_size(2 * LANES), aligned(2), may_alias));
typedef uint32_t words __attribute__((vector_size(4 * LANES)));

#if defined(__x86_64__) && defined(__linux__) && !defined(PLAIN)
#define CLONES __attribute__((target_clones("avx512f", "avx2", "default")))
#else
#define CLONES
#endif
#define INLINE static inline __attribute__((always_inline))
#define UNROLL _Pragma("GCC unroll 4")
#define LOAD_float(row, e) (*(const lanes *)((const float *)(row) + (e)))
#define LOAD_bf16(row, e)                                                                          \
    ((lanes)(__builtin_convertvector(*(const halves *)((const uint16_t *)(row) + (e)), words) << 16))

INLINE double one_float(const void *row, int64_t e) { return ((const float *)row)[e]; }

INLINE double one_bf16(const void *row, int64_t e) {
    uint32_t bits = (uint32_t)((const uint16_t *)row)[e] << 16;
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

INLINE int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }

/* All pairs of K vectors at once. */
#define TOGETHER(K, KIND)                                                                          \
    CLONES static void together_##K##_##KIND(const void *const *x, int64_t start, int64_t stop,    \
                                             totals *sums, double *out) {                          \
        enum { PAIRS = K * (K + 1) / 2, TURNS = 2 };                                               \
        for (; start < stop; start += STRETCH) {                                                   \
            int64_t end = least(start + STRETCH, stop), e = start;                                 \
            lanes sum[TURNS][PAIRS];                                                               \
            memset(sum, 0, sizeof sum);                                                            \
            for (; e + TURNS * LANES <= end; e += TURNS * LANES) {                                 \
                UNROLL for (int t = 0; t < TURNS; t++) {                                           \
                    lanes now[K];                                                                  \
                    UNROLL for (int k = 0; k < K; k++) now[k] = LOAD_##KIND(x[k], e + t * LANES);  \
                    int p = 0;                                                                     \
                    UNROLL for (int i = 0; i < K; i++)                                             \
                        UNROLL for (int j = i; j < K; j++, p++) sum[t][p] += now[i] * now[j];      \
                }                                                                                  \
            }                                                                                      \
            for (int p = 0; p < PAIRS; p++)                                                        \
                for (int t = 0; t < TURNS; t++)                                                    \
                    sums[p] += __builtin_convertvector(sum[t][p], totals);                         \
            for (; e < end; e++) {                                                                 \
                int p = 0;                                                                         \
                for (int i = 0; i < K; i++)                                                        \
                    for (int j = i; j < K; j++, p++)                                               \
                        out[p] += one_##KIND(x[i], e) * one_##KIND(x[j], e);                       \
            }                                                                                      \
        }                                                                                          \
    }

/* Vectors i .. i + 3 with j .. j + 3 over one stretch; x is padded to a multiple of TILE. */
#define TILES(KIND)                                                                                \
    CLONES static void tile_##KIND(const void *const *x, int tasks, int i, int j, int64_t start,   \
                                   int64_t end, totals *sums, double *out) {                       \
        lanes sum[TILE][TILE];                                                                     \
        memset(sum, 0, sizeof sum);                                                                \
        int64_t e = start;                                                                         \
        for (; e + LANES <= end; e += LANES) {                                                     \
            lanes left[TILE], right[TILE];                                                         \
            UNROLL for (int k = 0; k < TILE; k++) {                                                \
                left[k] = LOAD_##KIND(x[i + k], e);                                                \
                right[k] = LOAD_##KIND(x[j + k], e);                                               \
            }                                                                                      \
            UNROLL for (int a = 0; a < TILE; a++)                                                  \
                UNROLL for (int b = 0; b < TILE; b++) sum[a][b] += left[a] * right[b];             \
        }                                                                                          \
        for (int a = i; a < i + TILE && a < tasks; a++)                                            \
            for (int b = j > a ? j : a; b < j + TILE && b < tasks; b++) {                          \
                int p = a * tasks - a * (a - 1) / 2 + b - a;                                       \
                sums[p] += __builtin_convertvector(sum[a - i][b - j], totals);                     \
                for (int64_t r = e; r < end; r++)                                                  \
                    out[p] += one_##KIND(x[a], r) * one_##KIND(x[b], r);                           \
            }                                                                                      \
    }                                                                                              \
    static void many_##KIND(const void *const *x, int tasks, int64_t start, int64_t stop,          \
                            totals *sums, double *out) {                                           \
        for (; start < stop; start += LONG)                                                        \
            for (int i = 0; i < tasks; i += TILE)                                                  \
                for (int j = i; j < tasks; j += TILE)                                              \
                    tile_##KIND(x, tasks, i, j, start, least(start + LONG, stop), sums, out);      \
    }                                                                                              \
    static void any_##KIND(const void *const *x, int tasks, int64_t start, int64_t stop,           \
                           totals *sums, double *out) {                                            \
        switch (tasks) {                                                                           \
        case 1: together_1_##KIND(x, start, stop, sums, out); break;                               \
        case 2: together_2_##KIND(x, start, stop, sums, out); break;                               \
        case 3: together_3_##KIND(x, start, stop, sums, out); break;                               \
        case 4: together_4_##KIND(x, start, stop, sums, out); break;                               \
        default: many_##KIND(x, tasks, start, stop, sums, out);                                    \
        }                                                                                          \
    }

#define EVERYTHING(KIND)                                                                           \
    TOGETHER(1, KIND)                                                                              \
    TOGETHER(2, KIND)                                                                              \
    TOGETHER(3, KIND)                                                                              \
    TOGETHER(4, KIND)                                                                              \
    TILES(KIND)

EVERYTHING(float)
EVERYTHING(bf16)

/* `parts` shares, each on a thread: share n writes out[n * pairs ...]. `x` holds `tasks` addresses,
 * and the last again up to a multiple of TILE; `bf16` says what they are. Returns 0, or 1 when
 * memory is short. */
int products(int tasks, const void *const *x, int bf16, int64_t length, int parts, double *out) {
    int pairs = tasks * (tasks + 1) / 2;
    totals *sums = calloc((size_t)parts * pairs, sizeof *sums);
    if (!sums) return 1;
#pragma omp parallel for schedule(static, 1) num_threads(parts) if (parts > 1)
    for (int part = 0; part < parts; part++) {
        int64_t start = length * part / parts / LANES * LANES;
        int64_t stop = part + 1 < parts ? length * (part + 1) / parts / LANES * LANES : length;
        totals *mine = sums + (size_t)part * pairs;
        double *result = out + (size_t)part * pairs;
        memset(result, 0, pairs * sizeof *result);
        (bf16 ? any_bf16 : any_float)(x, tasks, start, stop, mine, result);
        for (int p = 0; p < pairs; p++)
            for (int l = 0; l < LANES; l++) result[p] += mine[p][l];
    }
    free(sums);
    return 0;
}
