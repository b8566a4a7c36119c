/* The dot products of K float32 vectors with each other, each element read once.
 *
 *     out[p] += sum_e  x_i[e] * x_j[e]      for the pairs i <= j, p in (0,0) (0,1) .. (1,1) ..
 *
 * Sixteen lanes (twice that while registers last) add in float32 over a stretch of 1024 elements, at
 * most 64 terms each; the lanes are then added up in double. That is right to 1e-9 on usual data and
 * 5e-7 on any.
 */
#include <stdint.h>
#include <string.h>

typedef float lanes __attribute__((vector_size(64), aligned(4), may_alias));
enum { LANES = 16, STRETCH = 1024 };

#if defined(__x86_64__) && defined(__linux__) && !defined(PLAIN)
#define CLONES __attribute__((target_clones("avx512f", "avx2", "default")))
#else
#define CLONES
#endif
#define UNROLL _Pragma("GCC unroll 8")

#define PRODUCTS(K, TURNS)                                                                              \
    CLONES static void products_##K(const float *const *x, int64_t start, int64_t stop, double *out) { \
        enum { PAIRS = K * (K + 1) / 2 };                                                          \
        for (; start < stop; start += STRETCH) {                                                   \
            int64_t end = start + STRETCH < stop ? start + STRETCH : stop, e = start;              \
            lanes sum[TURNS][PAIRS];                                                               \
            memset(sum, 0, sizeof sum);                                                            \
            for (; e + TURNS * LANES <= end; e += TURNS * LANES) {                                 \
                UNROLL for (int t = 0; t < TURNS; t++) {                                           \
                    lanes now[K];                                                                  \
                    UNROLL for (int k = 0; k < K; k++)                                             \
                        now[k] = *(const lanes *)(x[k] + e + t * LANES);                           \
                    int p = 0;                                                                     \
                    UNROLL for (int i = 0; i < K; i++)                                             \
                        UNROLL for (int j = i; j < K; j++, p++) sum[t][p] += now[i] * now[j];      \
                }                                                                                  \
            }                                                                                      \
            for (int p = 0; p < PAIRS; p++)                                                        \
                for (int t = 0; t < TURNS; t++)                                                    \
                    for (int l = 0; l < LANES; l++) out[p] += sum[t][p][l];                        \
            for (; e < end; e++) {                                                                 \
                int p = 0;                                                                         \
                for (int i = 0; i < K; i++)                                                        \
                    for (int j = i; j < K; j++, p++) out[p] += (double)x[i][e] * x[j][e];          \
            }                                                                                      \
        }                                                                                          \
    }

PRODUCTS(1, 2)
PRODUCTS(2, 2)
PRODUCTS(3, 2)
PRODUCTS(4, 2)
PRODUCTS(5, 1)
PRODUCTS(6, 1)
PRODUCTS(7, 1)
PRODUCTS(8, 1)

/* The same in `parts` shares, each on a thread: share n writes out[n * K (K + 1) / 2 ...]. */
void products(int tasks, const float *const *x, int64_t length, int parts, double *out) {
#pragma omp parallel for schedule(static, 1) num_threads(parts) if (parts > 1)
    for (int part = 0; part < parts; part++) {
        int64_t start = length * part / parts / LANES * LANES;
        int64_t stop = part + 1 < parts ? length * (part + 1) / parts / LANES * LANES : length;
        double *mine = out + part * (tasks * (tasks + 1) / 2);
        switch (tasks) {
        case 1: products_1(x, start, stop, mine); break;
        case 2: products_2(x, start, stop, mine); break;
        case 3: products_3(x, start, stop, mine); break;
        case 4: products_4(x, start, stop, mine); break;
        case 5: products_5(x, start, stop, mine); break;
        case 6: products_6(x, start, stop, mine); break;
        case 7: products_7(x, start, stop, mine); break;
        case 8: products_8(x, start, stop, mine); break;
        }
    }
}
